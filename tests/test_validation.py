import pytest

from tests.conftest import tone
from tiny_audio.shards import Clip
from tiny_audio.transcribe import MAX_BATCH_S
from tiny_audio.validation import wer_parts


@pytest.mark.parametrize("num_clips", [1, 5, 11])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_worker_transcribes_its_share_in_the_same_number_of_batches(num_workers, num_clips):
    clips = [Clip(f"c{i}", tone(0.2 + 0.1 * (i * 7 % 11)), "text") for i in range(num_clips)]
    window_s = MAX_BATCH_S / 2  # two clips a batch
    shares = [wer_parts(clips, rank, num_workers, window_s) for rank in range(num_workers)]
    assert len({len(parts) for parts in shares}) == 1
    assert max(len(part) for parts in shares for part in parts) <= 2
    assert sorted(clip.id for parts in shares for part in parts for clip in part) == sorted(clip.id for clip in clips)
