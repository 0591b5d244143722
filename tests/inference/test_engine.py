"""The engine's answers are those of one-by-one greedy decoding, whatever runs beside them."""

import random
from concurrent.futures import CancelledError
from itertools import takewhile
from threading import Thread

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.conftest import tone
from tiny_audio.audio.clip import padded_num_samples
from tiny_audio.audio.features import log_mel, pad_waveforms
from tiny_audio.inference.engine import Engine
from tiny_audio.inference.runner import Runner
from tiny_audio.inference.scheduler import Request, Scheduler, Token
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.layers import attend_slots

CLIPS = [tone(0.1 + 3.8 * ((7 * i) % 24) / 24, 90 * (i + 1)) for i in range(24)]
END_ID = 4


@pytest.fixture(scope="module", params=["full", "trimmed"])
def random_model(hub_folders, request):
    """Random backbones that say one of 8 tokens, so that texts end anywhere, and whose words hang on all they heard."""
    torch.manual_seed(1)
    encoder, decoder = hub_folders
    config = ASRConfig(audio_model_id=encoder, text_model_id=decoder, encoder_window=request.param, max_new_tokens=12)
    model = ASRModel(config)
    for weight in [*model.encoder.layers.parameters(), *model.projector.parameters(), *model.decoder.model.layers.parameters()]:
        if weight.ndim > 1:
            weight.data *= 8
    words = torch.randn(8, model.decoder.config.hidden_size)
    model.decoder.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.decoder.lm_head.weight))
    model.decoder.lm_head.weight.data[:8] = words
    return model


def greedy_tokens(model, clip, **options) -> list[Token]:
    """Transformers' own greedy decoding of a clip alone, up to the end."""
    num_padded = padded_num_samples(len(clip), model.window_num_samples, model.trimmed, model.frames_per_token)
    padded = pad_waveforms([torch.from_numpy(clip)], num_padded)
    mels, num_samples = log_mel(padded, model.num_mels), torch.tensor([len(clip)])
    written = model.generate(mels, num_samples, return_dict_in_generate=True, output_scores=True, **options)
    logprobs = model.decoder.compute_transition_scores(written.sequences, written.scores, normalize_logits=True)
    tokens = map(Token, written.sequences[0].tolist(), logprobs[0].tolist())
    return list(takewhile(lambda token: token.id != END_ID, tokens))


def engine_of(model, num_slots, rows=32, tokens=8192) -> Engine:
    return Engine(Runner(model, model.config.max_new_tokens, num_slots), Scheduler(num_slots, END_ID, rows, tokens))


def submit(engine, clip, on_token=None, max_new_tokens=12) -> Request:
    request = Request(clip, engine.runner.prompt_tokens(len(clip)), max_new_tokens, on_token)
    engine.submit(request)
    return request


@pytest.mark.parametrize(("num_loads", "num_arrivals"), [(2, 40), pytest.param(6, 300, marks=pytest.mark.slow)])
def test_a_text_is_the_same_whatever_the_load(random_model, num_loads, num_arrivals):
    """Clips arrive in random order and pace, and some of their callers leave: thousands of them in the slow tests."""
    assert random_model.prompt.end_id == END_ID
    alone = [greedy_tokens(random_model, clip) for clip in CLIPS]
    assert len({len(tokens) for tokens in alone}) > 3
    assert len({tuple(token.id for token in tokens) for tokens in alone}) > 15
    for seed in range(num_loads):
        rng = random.Random(seed)
        engine = engine_of(random_model, rng.choice([1, 3, 8, 16]), rng.choice([1, 4, 32]), rng.choice([60, 8192]))
        engine.runner.lookahead = rng.choice([0, 1])  # a GPU's is 1
        pace, sent = rng.uniform(0.2, 6.0), []
        while len(sent) < num_arrivals or engine._round():
            for _ in range(min(int(rng.expovariate(1 / pace)), num_arrivals - len(sent))):
                number = rng.randrange(len(CLIPS))
                sent.append((number, submit(engine, CLIPS[number], max_new_tokens=rng.choice([12, 12, rng.randint(1, 12)]))))
            if sent and rng.random() < 0.05:
                rng.choice(sent)[1].future.cancel()
            if len(sent) < num_arrivals:
                engine._round()
        answered = [(number, request) for number, request in sent if not request.future.cancelled()]
        assert len(answered) > 0.7 * num_arrivals
        for number, request in answered:
            limit, answer = request.max_new_tokens, request.future.result()
            expected = alone[number][:limit]
            assert answer.ids == [token.id for token in expected]
            assert answer.logprobs == pytest.approx([token.logprob for token in expected], abs=1e-4)
            assert answer.complete == (len(alone[number]) < limit)
        assert sorted(engine.runner.cache.free) == list(range(engine.runner.cache.num_slots))


def test_attention_to_slots_is_plain_attention_at_each_length():
    torch.manual_seed(0)
    query, lengths = torch.randn(7, 6, 16), torch.tensor([1, 5, 64, 63, 17, 2, 40])
    keys, values = torch.randn(2, 7, 64, 3, 16)
    seen = attend_slots(query, keys, values, lengths)
    for row, length in enumerate(lengths):
        q, k, v = (x.transpose(0, 1)[None] for x in (query[row, None], keys[row, :length], values[row, :length]))
        alone = scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)[0]
        torch.testing.assert_close(seen[row], alone)


def test_clips_of_many_threads_are_answered_as_alone(model):
    transcriber, clips = Transcriber(model, max_slots=3), [tone(0.3 + 0.2 * i, 150 * (i + 1)) for i in range(12)]
    alone, tokens = [Transcriber(model)([clip])[0] for clip in clips], {}
    transcriber.engine.start()
    answers = {}

    def call(i: int) -> None:
        tokens[i] = []
        answers[i] = transcriber.submit(clips[i], tokens[i].append).result(timeout=60)

    threads = [Thread(target=call, args=(i,)) for i in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transcriber.engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        transcriber.submit(CLIPS[0]).result(timeout=1)
    assert [transcriber.transcript(answers[i]) for i in range(len(clips))] == alone
    assert [tokens[i] for i in range(len(clips))] == [answers[i].tokens for i in range(len(clips))]


def test_clips_that_come_together_join_in_groups(model):
    """So they also end apart, and their callers' next clips come while others run."""
    engine, num_live = Transcriber(model, max_slots=24, max_joining=8).engine, []
    engine.scheduler.end_id = -1  # no text ends before its limit
    for clip in CLIPS:
        submit(engine, clip)
    while engine._round():
        num_live.append(engine.scheduler.most_live)
    assert num_live[:4] == [8, 16, 24, 24]


def test_a_clip_that_cannot_be_computed_fails_alone(model, monkeypatch):
    engine = Transcriber(model).engine
    encode = ASRModel.encode_batch

    def encode_or_fail(self, batch, layers):
        if any(len(clip.pcm) == 4321 for clip in batch.rows):
            raise RuntimeError("out of memory")
        return encode(self, batch, layers)

    monkeypatch.setattr(ASRModel, "encode_batch", encode_or_fail)
    good, bad, other = (submit(engine, tone(1.0)[:n]) for n in (16_000, 4321, 9_000))
    engine.run()
    assert good.future.result().complete
    assert other.future.result().complete
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.future.result()


def test_what_a_caller_left_runs_no_further(random_model):
    engine = engine_of(random_model, 2)
    told = []
    left = submit(engine, CLIPS[0], lambda token: left.future.cancel())
    waiting = submit(engine, CLIPS[1], told.append)
    waiting.future.cancel()
    engine.run()
    assert len(left.ids) <= 1
    assert told == []
    with pytest.raises(CancelledError):
        left.future.result()


def test_a_caller_whose_callback_fails_fails_alone(model):
    engine = Transcriber(model).engine
    good, bad = submit(engine, tone(1.0)), submit(engine, tone(1.0), lambda token: 1 / 0)
    engine.run()
    assert good.future.result().ids
    with pytest.raises(ZeroDivisionError):
        bad.future.result()
