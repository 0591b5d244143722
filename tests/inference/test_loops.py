"""What loops is written again without the loop, and all else as by one-by-one greedy decoding."""

import random

import pytest
import torch
from transformers import LogitsProcessorList

from tests.inference.test_engine import CLIPS, END_ID, greedy_tokens, random_model, submit  # noqa: F401
from tiny_audio.inference.engine import Engine
from tiny_audio.inference.loops import LONGEST_PHRASE, loop_start, num_repeated
from tiny_audio.inference.runner import Runner
from tiny_audio.inference.scheduler import LOOP_TOKENS, MAX_RETRIES, Scheduler

LONGEST_TEXT = 80  # tokens
SOME_LOOP = [CLIPS[i] for i in (8, 12, 17, 19)]


@pytest.mark.parametrize("period", [1, 5, 16])
def test_a_loop_is_told_from_a_long_text(period):
    rng = random.Random(0)
    phrase = rng.sample(range(1000), period)
    before = [2000 + i for i in range(30)]
    ids = before + (phrase * LOOP_TOKENS)[:LOOP_TOKENS]
    assert loop_start(ids, LOOP_TOKENS) == len(before) + period
    assert loop_start(ids[:-1], LOOP_TOKENS) is None
    assert num_repeated(ids) == LOOP_TOKENS - period
    assert loop_start(ids[: 30 + 4 * period], 4) == len(before) + period
    assert loop_start(ids[: 29 + 4 * period], 4) is None  # not yet four times
    assert loop_start([*ids, 3000], 4) is None
    assert loop_start(list(range(LONGEST_PHRASE + 1)) * 20, 4) is None


def ban(banned: dict[int, int]) -> LogitsProcessorList:
    """Makes transformers' `generate` forbid an id at each of these places."""

    def without(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] in banned:
            scores[:, banned[ids.shape[1]]] = -torch.inf
        return scores

    return LogitsProcessorList([without])


@pytest.mark.parametrize("random_model", ["trimmed"], indirect=True)
def test_what_loops_is_written_again_without_it(random_model):  # noqa: F811
    """Random weights loop often; each text is that of transformers' greedy decoding, but for the ids that would begin a loop."""
    answers, outcomes = [], set()
    for lookahead in (0, 1):
        engine = Engine(Runner(random_model, LONGEST_TEXT, 3), Scheduler(3, END_ID, 2, 8192))
        engine.runner.lookahead = lookahead
        told = [[] for _ in SOME_LOOP]
        requests = [submit(engine, clip, told[i].append, LONGEST_TEXT) for i, clip in enumerate(SOME_LOOP)]
        engine.run()
        answers.append([request.future.result() for request in requests])
        assert told == [answer.tokens for answer in answers[-1]]
        assert sorted(engine.runner.cache.free) == [0, 1, 2]
    assert [answer.ids for answer in answers[0]] == [answer.ids for answer in answers[1]]
    for clip, request, answer in zip(SOME_LOOP, requests, answers[0], strict=True):
        gave_up = len(request.loop_starts) > MAX_RETRIES
        banned = {} if gave_up else request.banned
        tokens = greedy_tokens(random_model, clip, max_new_tokens=LONGEST_TEXT, logits_processor=ban(banned))
        expected = tokens[: min(request.loop_starts)] if gave_up else tokens
        assert answer.ids == [token.id for token in expected]
        assert answer.logprobs == pytest.approx([token.logprob for token in expected], abs=1e-4)
        assert answer.looped == bool(request.loop_starts)
        assert answer.complete == (len(tokens) < LONGEST_TEXT and not gave_up)
        assert all(loop_start(answer.ids[:end], request.loop_tokens) is None for end in range(0, len(answer.ids), 8))
        outcomes.add((answer.looped, answer.complete))
    assert outcomes == {(False, True), (True, True), (True, False)}
