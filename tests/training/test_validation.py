import pytest

from tests.conftest import encode_audio, tone, write_shard
from tiny_audio.audio.clip import Clip
from tiny_audio.config import ConfigError, DataConfig
from tiny_audio.training.driver import _start_decoding_dev_clips
from tiny_audio.training.validation import wer_parts
from tiny_audio.training.worker import made_once


@pytest.mark.usefixtures("local_ray")
def test_dev_clips_are_decoded_in_a_task_whose_error_comes_as_it_was_raised(tmp_path):
    rows = [(f"row-{i}", encode_audio(tone(0.2 + 0.1 * i), "wav"), f"word {i}") for i in range(3)]
    write_shard(tmp_path / "good.parquet", [rows[0], ("mute", b"", "word"), *rows[1:]])
    clips = made_once(_start_decoding_dev_clips(DataConfig(dev=f"{tmp_path}/good.parquet")))
    assert [(clip.id, clip.text, clip.pcm.tobytes()) for clip in clips] == [
        (f"row-{i}", f"word {i}", tone(0.2 + 0.1 * i).tobytes()) for i in range(3)
    ]
    write_shard(tmp_path / "bad.parquet", [("mute", b"", "word")])
    with pytest.raises(ConfigError, match=r"^\S+bad\.parquet: every validation row is rejected: empty$"):
        made_once(_start_decoding_dev_clips(DataConfig(dev=f"{tmp_path}/bad.parquet")))


@pytest.mark.parametrize("num_clips", [1, 5, 11])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_worker_transcribes_its_share_in_the_same_number_of_batches(num_workers, num_clips):
    clips = [Clip(f"c{i}", tone(0.2 + 0.1 * (i * 7 % 11)), "text") for i in range(num_clips)]
    shares = [wer_parts(clips, rank, num_workers, rows_at_once=2) for rank in range(num_workers)]
    assert len({len(parts) for parts in shares}) == 1
    assert max(len(part) for parts in shares for part in parts) <= 2
    assert sorted(clip.id for parts in shares for part in parts for clip in part) == sorted(clip.id for clip in clips)
