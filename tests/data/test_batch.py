from dataclasses import replace

import pytest

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.data.batch import deal, load_s, num_micro_batches, window_batches
from tiny_audio.data.plan import Window
from tiny_audio.data.rows import LeftOut, Reject

WINDOW = Window(epoch=0, index=2, first_step=6, num_steps=3, slices=())
CLIPS = [Clip(f"c{i}", tone(0.2 + 0.1 * ((i * 7) % 23)), "text") for i in range(23)]


def batches(num_workers, rows=CLIPS):
    return window_batches(WINDOW, rows, seed=0, num_workers=num_workers, silence_share=0.1)


def steps(all_batches):
    """Maps each step to the sorted ids of its clips, over all workers."""
    return {step: sorted(c.id for b in all_batches if b.step == step for c in b.clips) for step in (6, 7, 8)}


@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_what_a_step_trains_does_not_depend_on_the_number_of_workers(num_workers):
    assert steps(batches(num_workers)) == steps(batches(1))


def test_every_clip_is_trained_once_with_a_share_of_silence():
    ids = [clip.id for batch in batches(2) for clip in batch.clips]
    assert sorted(i for i in ids if i.startswith("c")) == sorted(clip.id for clip in CLIPS)
    silent = [clip for batch in batches(2) for clip in batch.clips if clip.id.startswith("silence")]
    assert len(silent) == 2
    assert {clip.text for clip in silent} == {""}


def test_shares_are_of_like_load_and_shortest_first():
    shares = deal(CLIPS, 3)
    loads = [load_s(share) for share in shares]
    assert max(loads) - min(loads) < load_s(CLIPS[:1])
    for share in shares:
        assert [len(clip.pcm) for clip in share] == sorted(len(clip.pcm) for clip in share)
    assert deal(CLIPS[:1], 2) == [CLIPS[:1], []]


def test_all_workers_compute_as_many_parts_as_the_heaviest_share_needs():
    for step in (6, 7, 8):
        told = {batch.largest_share_s for batch in batches(2) if batch.step == step}
        assert told == {max(load_s(batch.clips) for batch in batches(2) if batch.step == step)}
    assert [num_micro_batches(load, 16.0) for load in (0.0, 16.0, 17.0, 40.0)] == [1, 1, 2, 3]


def other_than(row_id, all_batches):
    return {step: [name for name in names if name != row_id] for step, names in steps(all_batches).items()}


@pytest.mark.parametrize("became", [Reject("", "unreadable", "f"), LeftOut("yodas")])
def test_what_becomes_of_a_row_never_moves_another_and_is_told_at_its_own_step(became):
    """As when a file breaks, or is mended, between two readings of a window."""
    before = batches(2)
    for place in range(0, len(CLIPS), 5):
        after = batches(2, [*CLIPS[:place], became, *CLIPS[place + 1 :]])
        row_id = CLIPS[place].id
        assert steps(after) == other_than(row_id, before)
        (step,) = [step for step, names in steps(before).items() if row_id in names]
        told = [(b.step, b.rank) for b in after if b.rejects == [became] or b.left_out == {"yodas": 1}]
        assert told == [(step, 0)]
        assert sum(len(b.rejects) + len(b.left_out) for b in after) == 1


def test_a_row_that_is_taken_more_than_once_moves_no_other_and_stays_whole():
    """Its copies lie in one step: a file that breaks between two steps of a window cannot cost some of them."""
    before = batches(1)
    after = batches(1, [replace(CLIPS[0], copies=4), *CLIPS[1:]])
    assert other_than("c0", after) == other_than("c0", before)
    (first,) = [step for step, names in steps(before).items() if "c0" in names]
    assert {step: names.count("c0") for step, names in steps(after).items()} == {6: 0, 7: 0, 8: 0} | {first: 4}


def test_a_window_of_rejects_still_has_its_steps():
    of_rejects = window_batches(WINDOW, [Reject("bad", "empty", "f")] * 9, seed=0, num_workers=2)
    assert [batch.step for batch in of_rejects] == [6, 6, 7, 7, 8, 8]
    assert not any(batch.clips for batch in of_rejects)
    assert [len(batch.rejects) for batch in of_rejects] == [3, 0, 3, 0, 3, 0]
