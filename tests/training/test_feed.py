import pytest

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.data.batch import WorkerBatch, load_s
from tiny_audio.training.feature_cache import FeatureCache
from tiny_audio.training.feed import Feed

CLIPS = [Clip(f"c{i}", tone(0.5 + 0.1 * (i * 5 % 6)), "seven lemons") for i in range(6)]
SHARE_S = load_s(CLIPS)


class Stream:
    """Yields two steps, as a worker's stream does, and then fails."""

    def __init__(self):
        self.num_calls = 0
        self.batches = [WorkerBatch(step, 0, 0, 6, 2 * SHARE_S, CLIPS) for step in (0, 1)]

    def __next__(self):
        self.num_calls += 1
        if not self.batches:
            raise RuntimeError("the data ended")
        return self.batches.pop(0)


def feed(model, num_steps, cache=None, micro_batch_s=SHARE_S):
    return Feed(Stream(), num_steps, model.packing(), micro_batch_s, cache or FeatureCache(0), lambda clips, epoch: None)


def test_steps_come_in_order_in_as_many_parts_as_the_heaviest_share_needs(model):
    source = feed(model, 2)
    for step in (0, 1):
        ready = next(source)
        assert ready.batch.step == step
        assert len(ready.micro_batches) == 2  # another worker's share is twice as heavy as this one's
        assert sum(len(part.num_frames) for part in ready.micro_batches) == len(CLIPS)
        assert ready.num_label_tokens == sum(part.num_label_tokens for part in ready.micro_batches) > 2 * len(CLIPS)
    source.thread.shutdown()
    assert source.stream.num_calls == 2  # no call for a third step, which the stream does not have


def test_an_error_of_the_stream_is_raised_when_its_step_is_taken(model):
    source = feed(model, 3)
    next(source)
    source.make_next()
    next(source)
    with pytest.raises(RuntimeError, match="the data ended"):
        next(source)


def test_cached_clips_are_not_encoded_again(model):
    cache = FeatureCache(1e9)
    (part,) = next(feed(model, 1, micro_batch_s=1e9)).micro_batches
    cache.keep(part.fresh[:2], model(part).encoded[: sum(part.num_frames[:2])], part.num_frames[:2])
    ready = next(feed(model, 1, cache, micro_batch_s=1e9))
    assert [clip.id for clip in ready.micro_batches[0].fresh] == [clip.id for clip in part.fresh[2:]]
    assert ready.micro_batches[0].num_frames == part.num_frames[2:]
