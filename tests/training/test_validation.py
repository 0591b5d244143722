import pytest

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.training.validation import wer_parts


@pytest.mark.parametrize("num_clips", [1, 5, 11])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_worker_transcribes_its_share_in_the_same_number_of_batches(num_workers, num_clips):
    clips = [Clip(f"c{i}", tone(0.2 + 0.1 * (i * 7 % 11)), "text") for i in range(num_clips)]
    shares = [wer_parts(clips, rank, num_workers, rows_at_once=2) for rank in range(num_workers)]
    assert len({len(parts) for parts in shares}) == 1
    assert max(len(part) for parts in shares for part in parts) <= 2
    assert sorted(clip.id for parts in shares for part in parts for clip in part) == sorted(clip.id for clip in clips)
