"""OpenAI's API over real HTTP, with OpenAI's own client: the fields of the form, the forms of answers, and errors."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from ray import serve
from starlette.datastructures import FormData, UploadFile

from tests.serving.conftest import GOOD, TONES, WINDOW_S, audio_file, error_of, refusal, tone, transcribe
from tiny_audio.audio.clip import SAMPLE_RATE
from tiny_audio.audio.decode import decode
from tiny_audio.config import ConfigError
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.serving.app import build
from tiny_audio.serving.arguments import EdgeSettings
from tiny_audio.serving.errors import APIError
from tiny_audio.serving.form import read_form

CAPACITY = 2 * 8 + 16  # clips in flight and queued, with the arguments of `url`
BAD_AUDIO = {
    "empty": (b"", "empty"),
    "random bytes": (np.random.default_rng(0).bytes(4000), "not_audio"),
    "text": (b"Dear sir,\nplease find no audio in here.\n" * 100, "not_audio"),
    "cut WAV": (GOOD[: len(GOOD) // 2], "truncated"),
    "WAV of a header": (audio_file(tone(440)[:0]), "no_samples"),
    "NaN": (audio_file(np.full(SAMPLE_RATE, np.nan), subtype="FLOAT"), "not_finite"),
}
REFUSED_FIELDS = [
    ({"model": "x"}, 404, "model", "tiny_audio"),
    ({"language": "de"}, 400, "language", "en"),
    ({"prompt": "Mrs Dalloway"}, 400, "prompt", "trained without it"),
    ({"keywords[]": ["Clarissa"]}, 400, "keywords", "trained without it"),
    ({"temperature": "0.7"}, 400, "temperature", "greedy"),
    ({"response_format": "diarized_json"}, 400, "response_format", "speakers"),
    ({"response_format": "xml"}, 400, "response_format", "verbose_json"),
    ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities", "verbose_json"),
    ({"timestamp_granularities": "segment"}, 400, "timestamp_granularities", "verbose_json"),
    ({"stream": "true", "response_format": "srt"}, 400, "stream", "verbose_json"),
    ({"include[]": "speakers"}, 400, "include", "logprobs"),
    ({"include[]": "logprobs", "response_format": "verbose_json"}, 400, "include", "json"),
    ({"chunking_strategy": "sometimes"}, 400, "chunking_strategy", "auto"),
    ({"chunking_strategy": '{"type": "server_vad", "threshold": 7}'}, 400, "chunking_strategy[threshold]", "less than 1"),
    (
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[silence_duration_ms]": "20"},
        400,
        "chunking_strategy[silence_duration_ms]",
        "32",
    ),
    ({"chunking_strategy": '{"type":' * 5000 + "}" * 5000}, 400, "chunking_strategy", "auto"),
    ({"chunking_strategy[type]": "server_vad", "chunking_strategy[x]": "1"}, 400, "chunking_strategy", "not permitted"),
    ({"chunking_strategy[type]": ["server_vad", "server_vad"]}, 400, "chunking_strategy", "twice"),
    ({"known_speaker_names[]": "Ann"}, 400, "known_speaker_names", "trained without it"),
    ({"hotwords": "x"}, 400, "hotwords", "known: file, model"),
    ({"model": ["tiny_audio", "tiny_audio"]}, 400, "model", "twice"),
    ({"stream": "perhaps"}, 400, "stream", "boolean"),
]
TAKEN_FIELDS = [
    {"model": "whisper-1"},
    {"language": "EN"},
    {"language": "English", "prompt": "", "temperature": "0", "stream": "false"},
    {"response_format": "JSON"},
]


def post(http, path="/v1/audio/transcriptions", file=("clip", GOOD), **fields):
    return http("POST", path, files={"file": file}, data={"model": "tiny_audio"} | fields)


def test_json_has_the_text_and_what_it_took(client, alone):
    answer = transcribe(client, GOOD)
    assert answer.text == alone[0]
    tokens = answer.usage.input_token_details
    assert tokens.audio_tokens == 25  # a second
    assert answer.usage.input_tokens == tokens.audio_tokens + tokens.text_tokens
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.usage.type, answer.usage.seconds) == ("tokens", 1.0)


def test_each_form_of_answer_says_the_same(client, http, alone):
    assert transcribe(client, GOOD, response_format="text") == alone[0]
    assert transcribe(client, GOOD, response_format="srt") == f"1\n00:00:00,000 --> 00:00:01,000\n{alone[0]}\n"
    assert transcribe(client, GOOD, response_format="vtt") == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{alone[0]}\n"
    kinds = {form: post(http, response_format=form).headers["content-type"] for form in ("text", "srt", "vtt")}
    plain = "text/plain; charset=utf-8"
    assert kinds == {"text": plain, "srt": plain, "vtt": "text/vtt; charset=utf-8"}
    for spelling in ("timestamp_granularities[]", "timestamp_granularities"):
        verbose = post(http, response_format="verbose_json", **{spelling: "segment"}).json()
        (segment,) = verbose["segments"]
        assert (verbose["text"], segment["text"], segment["start"], segment["end"]) == (alone[0], alone[0], 0.0, 1.0)
        assert (verbose["language"], verbose["duration"]) == ("english", 1.0)


def test_a_stream_brings_the_text_in_pieces_and_is_done_once(client, http, alone):
    for data, text in zip(TONES, alone, strict=True):
        *deltas, done = transcribe(client, data, stream=True)
        assert {event.type for event in deltas} <= {"transcript.text.delta"}
        assert "".join(event.delta for event in deltas) == done.text == text
        assert (done.type, done.usage.type) == ("transcript.text.done", "tokens")
    raw = post(http, stream="true")
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert raw.text.endswith("\n\ndata: [DONE]\n\n")
    assert error_of(post(http, stream="true", file=("clip", b"no audio")))["code"] == "not_audio"


def test_a_stream_brings_the_times_where_they_are_asked_for(client, alone):
    *deltas, segment, done = transcribe(client, TONES[0], stream=True, response_format="verbose_json")
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert (segment.type, segment.id, segment.start, segment.end) == ("transcript.text.segment", "0", 0.0, 1.0)
    assert segment.text == done.text == alone[0]


def test_words_have_times_where_they_are_asked_for(client):
    clip = audio_file(tone(110, 4.0))
    answer = transcribe(client, clip, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert [word.word for word in answer.words] == answer.text.split()
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 4.1
    assert transcribe(client, clip, response_format="verbose_json").words is None
    events = transcribe(client, clip, response_format="verbose_json", stream=True)
    (segment,) = [event for event in events if event.type == "transcript.text.segment"]
    assert segment.words == [word.model_dump() for word in answer.words]


def test_word_times_are_refused_by_a_model_that_knows_none():
    fields = [("model", "m"), ("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
    form = read_form(FormData([("file", UploadFile(io.BytesIO(), filename="a.wav")), *fields]))
    assert form.wants_words(known=True)
    with pytest.raises(APIError, match="knows no word times; take segment"):
        form.wants_words(known=False)


def test_tokens_come_with_their_log_probabilities_where_they_are_asked_for(client, alone):
    answer = transcribe(client, GOOD, include=["logprobs"])
    assert b"".join(bytes(map(int, one.bytes)) for one in answer.logprobs).decode().strip() == answer.text == alone[0]
    assert all(one.token.encode() == bytes(map(int, one.bytes)) and one.logprob < 0 for one in answer.logprobs)
    *deltas, done = transcribe(client, GOOD, include=["logprobs"], stream=True)
    assert [one.token for delta in deltas for one in delta.logprobs] == [one.token for one in answer.logprobs]
    assert [one.logprob for one in done.logprobs] == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)
    (segment,) = transcribe(client, GOOD, response_format="verbose_json").segments
    assert segment.avg_logprob == pytest.approx(np.mean([one.logprob for one in answer.logprobs]), abs=1e-4)
    assert transcribe(client, GOOD).logprobs is None


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio_is_refused_with_its_reason(client, alone, kind):
    data, reason = BAD_AUDIO[kind]
    error = refusal(transcribe, client, data)
    assert (error["status"], error["code"], error["param"]) == (400, reason, "file")
    assert transcribe(client, GOOD).text == alone[0]


def test_other_rates_channels_and_depths_are_accepted(client):
    stereo = np.stack([tone(440, rate=44_100), tone(880, rate=44_100)], axis=1)
    assert transcribe(client, audio_file(stereo, 44_100)).usage.seconds == pytest.approx(1, abs=1e-3)
    assert transcribe(client, audio_file(tone(440), subtype="PCM_U8")).usage.seconds == 1
    assert transcribe(client, audio_file(tone(440, WINDOW_S), format="FLAC")).usage.seconds == WINDOW_S


@pytest.mark.parametrize(("fields", "status", "param", "says"), REFUSED_FIELDS)
def test_what_cannot_be_done_is_refused_by_name(http, fields, status, param, says):
    error = error_of(post(http, **fields))
    assert (error["status"], error["param"]) == (status, param)
    assert says in error["message"]


@pytest.mark.parametrize("fields", TAKEN_FIELDS)
def test_fields_are_taken_as_clients_spell_them(http, alone, fields):
    assert post(http, **fields).json()["text"] == alone[0]


def test_a_form_that_is_none_is_refused(http):
    assert "file name" in error_of(http("POST", "/v1/audio/transcriptions", files={"file": (None, GOOD)}))["message"]
    assert error_of(post(http, file=("a", GOOD), prompt="x" * 70_000))["status"] == 400
    for options in ({}, {"json": {"model": "tiny_audio"}}, {"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}}):
        assert error_of(http("POST", "/v1/audio/transcriptions", **options))["status"] == 400


def test_each_model_answers_as_it_does_where_it_is_alone(client, alone, second_model):
    expected = Transcriber.load(second_model).texts([decode(data, WINDOW_S) for data in TONES])
    asked = [(name, data) for data in TONES for name in ("second", "tiny_audio")]
    with ThreadPoolExecutor(len(asked)) as pool:
        texts = list(pool.map(lambda one: transcribe(client, one[1], model=one[0]).text, asked))
    assert texts == [text for both in zip(expected, alone, strict=True) for text in both]
    assert expected != alone
    *_, done = transcribe(client, GOOD, model="second", stream=True)
    assert done.text == expected[0]


def test_the_models_are_listed(client, http):
    assert [model.id for model in client.models.list()] == ["tiny_audio", "whisper-1", "second"]
    assert client.models.retrieve("whisper-1").object == "model"
    assert http("GET", "/healthz").json() == {"status": "ok", "max_duration_s": 600, "window_s": WINDOW_S}


def test_errors_of_routes_have_openais_shape(client, http):
    for method, path, status in (("GET", "/v1/x", 404), ("GET", "/v1/models/x", 404), ("DELETE", "/v1/models", 405)):
        assert error_of(http(method, path))["status"] == status
    assert "does not translate" in refusal(client.audio.translations.create, file=("a", GOOD), model="tiny_audio")["message"]


def test_the_schema_describes_the_form_where_it_is_asked_for(http):
    operation = http("GET", "/openapi.json").json()["paths"]["/v1/audio/transcriptions"]["post"]
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert fields["response_format"]["enum"] == ["json", "text", "srt", "vtt", "verbose_json"]
    assert http("GET", "/docs").ok


def test_concurrent_clips_are_batched_and_answered_as_alone(client, alone):
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(len(TONES)) as pool:
        together = list(pool.map(lambda data: transcribe(client, data).text, TONES))
    assert together == alone
    described = serve.get_deployment_handle("Transcriber", "tiny_audio").describe.remote().result()
    assert 1 < described["largest_batch"] <= 8


def test_a_clip_that_fails_does_not_fail_its_batch(client):
    handle = serve.get_deployment_handle("Transcriber", "tiny_audio")
    good = (tone(440) * 32767).astype(np.int16)
    expected = handle.remote(good).result()["text"]
    answers = [handle.remote(clip) for clip in (good, np.zeros((WINDOW_S + 1) * SAMPLE_RATE, np.int16), good)]
    assert [answers[number].result()["text"] for number in (0, 2)] == [expected, expected]
    with pytest.raises(ValueError, match="is over 8 s"):
        answers[1].result()


def test_overload_is_refused_with_429(client, alone):
    def outcome(_) -> str:
        try:
            return transcribe(client, GOOD).text
        except openai.RateLimitError as error:
            return f"{error.code}, retry after {error.response.headers['retry-after']}"

    with ThreadPoolExecutor(3 * CAPACITY) as pool:
        outcomes = list(pool.map(outcome, range(3 * CAPACITY)))
    assert set(outcomes) == {alone[0], "rate_limit_exceeded, retry after 2"}


def test_settings_say_what_is_wrong():
    with pytest.raises(ConfigError, match="unknown key modell; did you mean model"):
        build({"modell": "m"})
    with pytest.raises(ConfigError, match="no saved model there; train one first"):
        build({"model": "no/such/folder"})
    with pytest.raises(ConfigError, match="tiny_audio_api_keyz; did you mean tiny_audio_api_keys"):
        EdgeSettings.from_environment({"TINY_AUDIO_API_KEYZ": "keys"})
    assert EdgeSettings.from_environment({"TINY_AUDIO_MAX_UPLOAD_MIB": "3"}).max_upload_mib == 3
    assert json.loads(json.dumps(vars(EdgeSettings.from_environment({}))))["api_keys"] is None
