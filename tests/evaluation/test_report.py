"""The report page keeps untrusted text as text, fetches nothing, lists the worst utterances first and survives gaps in a run."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from tiny_audio.evaluation.report import word_diff, worst_utterances, write_report

ATTACK = '<script>alert(1)</script> "><img src=x onerror=alert(1)> </pre></style> \u2028 \ud800'
SCORE = {"wer": 0.0214, "ci_low": 0.0171, "ci_high": 0.0262, "num_utterances": 1000, "num_words": 7211, "note": ATTACK}
EVALUATION = {
    "sets": {"test": SCORE | {"label": "Known voices"}, "new_words": SCORE | {"label": ATTACK}},
    "controls": {"untrained": SCORE | {"wer": 1.0, "ci_low": 0.99, "ci_high": 1.01, "label": "Untrained projector"}},
    "silence": [{"name": "silence", "text": ""}, {"name": ATTACK, "text": ATTACK}],
    "rejected": {ATTACK: {ATTACK: 2}},
    "rtfx": 412.0,
}
SUMMARY = {
    "train_seconds": 612.4,
    "steps": 30,
    "http_reference": "a b",
    "http_transcript": ATTACK,
    "rejected_train": {"yodas": {"too_long": 1}},
}


class Page(HTMLParser):
    """Collects a page's tags, attributes and text as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def utterance(id, num_errors, num_words, reference="the old baker", hypothesis="the baker"):
    line = {"id": id, "set": "test", "reference": reference, "hypothesis": hypothesis}
    return line | {"num_errors": num_errors, "num_words": num_words, "duration_s": 1.0, "speaker": "en_1"}


def write_lines(path, lines, ensure_ascii=True):
    path.write_text("".join(json.dumps(line, ensure_ascii=ensure_ascii) + "\n" for line in lines))


@pytest.fixture
def run_dir(tmp_path):
    run_dir = tmp_path / "a <b> run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("name: </pre><script>alert(1)</script>\n")
    (run_dir / "evaluation.json").write_text(json.dumps(EVALUATION))
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    files = [{"path": ATTACK, "reasons": {"empty": 2}}, {"path": "b.parquet", "reasons": {"empty": 1, "too_long": 1}}]
    (run_dir / "training.json").write_text(json.dumps({"reject_files": files}))
    rates = {"learning_rate": 3e-4, "audio_s_per_s": 3000.0, "data_wait_share": 0.01}
    training = [{"step": step, "loss": 5 / step, "grad_norm": 1.0, "epoch": 0, "time_s": 1.0, **rates} for step in (10, 20, 30)]
    write_lines(run_dir / "metrics.jsonl", [*training, {"step": 30, "val_loss": 0.2, "val_wer": 0.021}])
    write_lines(run_dir / "utterances.jsonl", [utterance(ATTACK, 2, 3, hypothesis=ATTACK), utterance("clean", 0, 3)])
    return run_dir


@pytest.fixture
def wav():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, np.int16), 16_000, format="WAV")
    return file.getvalue()


def test_page_holds_no_untrusted_markup_and_fetches_nothing(run_dir, wav):
    html = write_report(run_dir, {ATTACK: wav}).read_text()
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(
        value.startswith(("data:audio/wav;base64,", "#")) for name, value in page.attributes if name in ("src", "xlink:href")
    )
    assert not re.search(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://|@import", html)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert page.text.count("<script>alert(1)</script>") >= 8  # shown as it is: label, note, clip, transcripts, config, ...
    assert html == write_report(run_dir, {ATTACK: wav}).read_text()


def test_rejects_are_counted_by_source_reason_and_file(run_dir):
    (run_dir / "evaluation.json").write_text(json.dumps(EVALUATION | {"rejected": {"yodas": {"too_long": 2, "empty": 5}}}))
    html = write_report(run_dir, {}).read_text()
    rows = re.findall(r'<th scope="row">(\w+)</th><td>([\w ]+)</td><td class="count">(\d)</td><td class="count">(\d)</td>', html)
    assert rows == [("yodas", "empty", "0", "5"), ("yodas", "too long", "1", "2")]
    assert "b.parquet: 1 empty, 1 too long" in Page(html).text


def test_player_plays_the_clip(run_dir, wav):
    page = Page(write_report(run_dir, {ATTACK: wav}).read_text())
    (source,) = [value for name, value in page.attributes if name == "src"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (len(samples), rate) == (1600, 16_000)
    assert ("preload", "none") in page.attributes


def test_verdict_says_whether_the_model_beats_its_controls(run_dir):
    assert "2.1\u00a0% of the words are wrong on “Known voices”" in (html := write_report(run_dir, {}).read_text())
    assert "no better than" not in html
    (run_dir / "evaluation.json").write_text(json.dumps(EVALUATION | {"controls": {"shuffled": SCORE | {"label": "Shuffled"}}}))
    assert "no better than 2.1\u00a0% for the control “Shuffled”" in write_report(run_dir, {}).read_text()


def test_run_without_validation_has_its_loss_chart(run_dir):
    write_lines(
        run_dir / "metrics.jsonl", [{"step": 10, "loss": 5.0}, {"step": 20, "loss": float("nan")}, {"step": 20, "loss": 2.0}]
    )
    html = write_report(run_dir, {}).read_text()
    assert "No validation was logged" in html
    assert 'aria-label="training loss goes from 5 at step 10 to 2 at step 20"' in html


def test_empty_run_folder_gives_sentences(tmp_path):
    text = Page(write_report(tmp_path, {}).read_text()).text
    for sentence in (
        "has not been evaluated yet",
        "No training metrics",
        "No utterances were scored",
        "No rejected clip is on record",
    ):
        assert sentence in text
    write_lines(tmp_path / "utterances.jsonl", [utterance("clean", 0, 3)])
    assert "Not one test utterance has an error." in write_report(tmp_path, {}).read_text()


def test_worst_utterances_are_sorted_by_errors_per_word_then_errors_then_id(tmp_path):
    lines = [utterance("d", 1, 4), utterance("b", 2, 4), utterance("clean", 0, 5), utterance("c", 4, 8), utterance("a", 2, 4)]
    lines.append(utterance("nothing said", 2, 0, reference="", hypothesis="hello\u2028there"))
    write_lines(tmp_path / "utterances.jsonl", lines, ensure_ascii=False)
    assert [line["id"] for line in worst_utterances(tmp_path)] == ["nothing said", "c", "a", "b", "d"]
    assert [line["id"] for line in worst_utterances(tmp_path, count=2)] == ["nothing said", "c"]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the old  baker ran", "the baker ran home", "equal:the:the delete:old: equal:baker:baker equal:ran:ran insert::home"),
        ("a b", "a c", "equal:a:a substitute:b:c"),
        ("", "hello", "insert::hello"),
        ("hello there", "", "delete:hello: delete:there:"),
        ("", "", ""),
    ],
)
def test_diff_aligns_words(reference, hypothesis, expected):
    assert " ".join(":".join(word) for word in word_diff(reference, hypothesis)) == expected
