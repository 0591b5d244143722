"""Augmentation is a function of seed, epoch and clip; and does what its settings say."""

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.conftest import plan_of, tone
from tiny_audio.audio.augment import BROWN, FRAME_SAMPLES, WHITE, add_noise, augment_clip, batch_masks, draw_masks, make_noise
from tiny_audio.audio.clip import HOP_SAMPLES, Clip
from tiny_audio.audio.features import log_mel
from tiny_audio.audio.masks import apply_masks
from tiny_audio.config import AugmentConfig, ConfigError
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.data.stream import _decode_window, _from_table
from tiny_audio.run.checkpoint import Progress, checkpoint_folder, require_same_plan, save_checkpoint, state_bytes

HARDER = AugmentConfig(speed_factors=[0.9, 1.0, 1.1], noise_share=0.5, noise_snr_db=[0.0, 10.0])
MASKED = AugmentConfig(time_masks=2, frequency_masks=2)


def augmented(config=HARDER, seed=0, epoch=0, max_duration_s=8.0, count=60):
    clips = [Clip(f"c{i}", tone(2.0), "text") for i in range(count)]
    return [augment_clip(clip, config, max_duration_s, seed, epoch).pcm for clip in clips]


def same(one, other):
    return [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]


def test_off_by_default_and_then_bit_for_bit_the_same():
    assert all(same(augmented(AugmentConfig()), [tone(2.0)] * 60))


def test_a_clip_follows_from_seed_epoch_and_id_and_differs_with_each():
    first = augmented()
    assert all(same(first, augmented()))
    assert not all(same(first, augmented(seed=1)))
    assert not all(same(first, augmented(epoch=1)))
    assert len({pcm.tobytes() for pcm in first}) > 20


def test_noise_switched_on_leaves_the_speeds_as_they_were():
    quiet = augmented(replace(HARDER, noise_share=0.0))
    assert [len(pcm) for pcm in quiet] == [len(pcm) for pcm in augmented()]


def test_speed_changes_duration_and_pitch_together():
    for pcm in augmented(AugmentConfig(speed_factors=[1.25]), count=1):
        assert len(pcm) == pytest.approx(2.0 / 1.25 * 16_000, abs=1)
        assert np.abs(np.fft.rfft(pcm)).argmax() * 16_000 / len(pcm) == pytest.approx(1.25 * 440, abs=1)
    lengths = {round(32_000 / len(pcm), 2) for pcm in augmented()}
    assert lengths == {0.9, 1.0, 1.1}


def test_a_clip_that_would_get_too_long_keeps_its_speed():
    assert {len(pcm) for pcm in augmented(AugmentConfig(speed_factors=[0.9]), max_duration_s=2.2)} == {32_000}


@pytest.mark.parametrize("kind", [WHITE, BROWN])
@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_noise_lies_under_the_clip_by_its_ratio(kind, snr_db):
    clip = tone(2.0)
    noise = add_noise(clip, make_noise(np.random.default_rng(0), len(clip), kind), snr_db).astype(float) - clip
    assert 10 * np.log10(np.mean(np.square(clip.astype(float))) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.1)


def test_noise_takes_its_share_of_the_clips_never_clips_and_leaves_silence():
    noisy = augmented(AugmentConfig(noise_share=0.5), count=400)
    assert np.mean(same(noisy, [tone(2.0)] * 400)) == pytest.approx(0.5, abs=0.1)
    loud = (tone(1.0).astype(float) * 4).clip(-32767, 32767).astype(np.int16)
    mixed = add_noise(loud, make_noise(np.random.default_rng(0), len(loud), WHITE), 0.0)
    assert np.corrcoef(mixed, loud)[0, 1] > 0.65  # 0.71 is what noise as loud as the clip leaves; wrapped samples leave less
    assert np.abs(mixed.astype(int)).max() == 32767
    assert not add_noise(np.zeros(160, np.int16), np.ones(160), 0.0).any()


def window_clips(shards, num_workers, augment):
    """id -> PCM that the decode tasks send, over all workers, and what every step holds"""
    settings = {"batch_rows": 4, "steps_per_window": 4, "max_duration_s": 3.1, "silence_share": 0.1, "augment": augment}
    plan = plan_of(read_footers(list_shards(f"{shards}/train/*.parquet")), seed=0, **settings)
    window = next(plan.windows(num_steps=4))
    tables = _decode_window(pa.table({"window": [json.dumps(asdict(window))]}), plan, range(4), num_workers, block_rows=8)
    batches = [batch for table in tables for batch in _from_table(table)]
    pcm = {clip.id: clip.pcm.tobytes() for batch in batches for clip in batch.clips}
    steps = {(batch.step, len(clip.pcm), clip.id) for batch in batches for clip in batch.clips}
    return pcm, steps


def test_the_decode_tasks_augment_alike_for_any_number_of_workers(shards):
    plain, one = window_clips(shards, 1, AugmentConfig()), window_clips(shards, 1, HARDER)
    assert window_clips(shards, 2, HARDER) == one
    changed = {name for name in plain[0] if plain[0][name] != one[0][name]}
    assert len(changed) > 8
    assert not any(name.startswith("silence") for name in changed)


def test_another_augmentation_of_the_same_run_is_refused(tmp_path):
    plan = plan_of([], augment=HARDER)
    save_checkpoint(checkpoint_folder(tmp_path, 2), {}, {}, state_bytes(Progress(step=2, plan=plan.identity())))
    require_same_plan(tmp_path, plan.identity())
    changed = replace(plan, augment=replace(HARDER, noise_snr_db=[5.0, 10.0]))
    with pytest.raises(ConfigError, match=r"augment\.noise_snr_db=\[0\.0, 10\.0\], now it is \[5\.0, 10\.0\]"):
        require_same_plan(tmp_path, changed.identity())


def test_masks_stay_in_the_clip_and_under_their_sizes():
    rng = np.random.default_rng(0)
    for num_frames in (1, 9, 100, 3000):
        drawn = [draw_masks(rng, num_frames, 80, MASKED) for _ in range(300)]
        times, bands = (np.concatenate(spans) for spans in zip(*drawn, strict=True))
        for spans, widest, length in ((times, min(100, num_frames // 5), num_frames), (bands, 27, 80)):
            widths = spans[:, 1] - spans[:, 0]
            assert widths.min() == 0
            assert widths.max() == widest
            assert spans.min() >= 0
            assert spans.max() <= length
    assert [spans.shape for spans in draw_masks(rng, 100, 80, AugmentConfig(time_masks=1))] == [(1, 2), (0, 2)]


def test_masks_are_a_clips_own_in_whatever_batch_it_comes():
    clips = [Clip(f"c{i}", tone(1.0 + i), "text") for i in range(3)]
    whole, last = (batch_masks(part, 80, MASKED, seed=0, epoch=3) for part in (clips, clips[2:]))
    assert np.array_equal(whole.time[2:], last.time)
    assert np.array_equal(whole.frequency[2:], last.frequency)
    assert not np.array_equal(last.time, batch_masks(clips[2:], 80, MASKED, seed=0, epoch=4).time)
    assert batch_masks(clips, 80, HARDER, seed=0, epoch=3) is None


def test_masking_hides_the_spans_with_the_mean_and_nothing_else():
    clips = [Clip(f"c{i}", (tone(1.0 + i) * 0.5).astype(np.int16), "text") for i in range(3)]
    assert FRAME_SAMPLES == HOP_SAMPLES
    padded = np.stack([np.pad(clip.pcm, (0, 64_000 - len(clip.pcm))) for clip in clips])
    mels, spans = log_mel(torch.from_numpy(padded), 80), batch_masks(clips, 80, MASKED, seed=0, epoch=0)
    masked = apply_masks(mels, spans)
    for row in range(3):
        expected, frames = mels[row].clone(), spans.num_frames[row]
        mean = mels[row, :, :frames].mean()
        for start, stop in spans.time[row]:
            expected[:, start:stop] = mean
        for start, stop in spans.frequency[row]:
            expected[start:stop, :frames] = mean
        torch.testing.assert_close(masked[row], expected)
        assert not torch.equal(masked[row], mels[row])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed_factors": [0.1]}, "augment.speed_factors must be at least 0.5, not 0.1"),
        ({"noise_share": 2.0}, "augment.noise_share must be at most 1, not 2.0"),
        ({"noise_snr_db": [20.0, 5.0]}, "noise_snr_db must be"),
        ({"time_masks": -1}, "augment.time_masks must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)
