"""The report of a run: one HTML page that explains itself and loads nothing from elsewhere.

Reads config.yaml, metrics.jsonl, evaluation.json, utterances.jsonl, summary.json and training.json of a run folder, as far
as they exist, and writes report.html beside them. Runs on any CPU, after evaluation; knows nothing of Ray or torch. Equal
folders give equal bytes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tiny_audio.counts import duration
from tiny_audio.model.prompt import clean_transcript
from tiny_audio.run.metrics import read_json_lines, read_metrics

TEMPLATE = "report.html.jinja"
HEADLINE_SET = "sentences"  # test set of the one-sentence verdict; without it the first set is taken
Curve = tuple[list[int], list[float]]  # steps and values

# Charts are drawn in these colours. On the page each becomes the CSS variable of its name, so that dark mode can change it.
COLOURS = {"ink": "#1c2127", "muted": "#59636e", "line": "#d9dee3", "train": "#0b62b0", "validation": "#b8480c"}
CHART_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "tiny_audio",  # otherwise the ids would be random
    "font.size": 9.5,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
TRAIN_LINE = {"color": COLOURS["train"]}
VALIDATION_LINE = {"color": COLOURS["validation"], "linestyle": "--", "marker": "o", "markersize": 3.5}
LARGE, SMALL = (4.8, 2.7), (3.5, 1.75)  # inches, drawn as 72 units each: the text stays legible at a phone's width
IN_TIME = (10.0, 1.9)
WAVE_POINTS, WORD_ROWS = 500, 3


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def worst_utterances(run_dir: Path, count: int = 12) -> list[dict[str, Any]]:
    """Returns the `count` worst lines of utterances.jsonl: by errors per word, then errors, then id; none without an error."""
    wrong = [line for line in read_json_lines(Path(run_dir) / "utterances.jsonl") if line["num_errors"]]
    wrong.sort(key=lambda line: (-line["num_errors"] / max(line["num_words"], 1), -line["num_errors"], line["id"]))
    return wrong[:count]


def word_diff(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Aligns two texts: (equal | substitute | delete | insert, reference word, hypothesis word); "" stands for no word."""
    aligned = jiwer.process_words(clean_transcript(reference), clean_transcript(hypothesis))
    reference_words, hypothesis_words = aligned.references[0], aligned.hypotheses[0]
    return [
        (chunk.type, *pair)
        for chunk in aligned.alignments[0]
        for pair in zip_longest(
            reference_words[chunk.ref_start_idx : chunk.ref_end_idx],
            hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx],
            fillvalue="",
        )
    ]


def percent(fraction: float) -> str:
    """Formats a fraction as per cent: 0.0214 -> "2.1 %" (no-break space), with a second decimal below 1 %."""
    value = 100 * fraction
    return f"{value:.{2 if 0 < value < 1 else 1}f}\u00a0%"


def interval(row: dict[str, Any]) -> str:
    """Formats the 95 % interval of a WER: "1.7–2.6 %"."""
    return f"{percent(row['ci_low'])[:-2]}–{percent(row['ci_high'])}"


def _curve(lines: list[dict[str, Any]], key: str) -> Curve:
    """Returns the steps that have a value of `key`, and these values."""
    points = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in points], [line[key] for line in points]


def _svg(name: str, alt: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Markup:
    """Calls `draw` with empty axes and returns what it draws as an <svg> element for the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()[file.getvalue().index("<svg") :]  # drops <?xml> and <!DOCTYPE>, which may not stand inside HTML
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # every chart has an id figure_1: ids get its name
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def _step_axis(axes: Any, unit: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit(value)))
    axes.tick_params(length=0)


def _from_to(name: str, curve: Curve, unit: Callable[[float], str]) -> str:
    steps, values = curve
    return f"{name} goes from {unit(values[0])} at step {steps[0]:,} to {unit(values[-1])} at step {steps[-1]:,}"


def _short_percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}\u00a0%"


def _loss_chart(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    curves = {"training": (_curve(lines, "loss"), TRAIN_LINE), "validation": (_curve(lines, "val_loss"), VALIDATION_LINE)}
    curves = {name: (curve, style) for name, (curve, style) in curves.items() if curve[0]}
    if not curves:
        return None

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        for name, (curve, style) in curves.items():
            axes.plot(*curve, label=name, **style)
        axes.set_yscale("log")
        _step_axis(axes, "{:g}".format)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(loc="upper right")

    alt = "; ".join(_from_to(f"{name} loss", curve, "{:.3g}".format) for name, (curve, _) in curves.items())
    return {"title": "Loss", "unit": "nats per token, log scale", "svg": _svg("loss", alt, LARGE, draw)}


def _wer_chart(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    steps, values = curve = _curve(lines, "val_wer")
    if not steps:
        return None

    def draw(axes: Any) -> None:
        axes.plot(*curve, **VALIDATION_LINE)
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "right", "fontweight": "bold"}
        axes.annotate(percent(values[-1]), (steps[-1], values[-1]), **above)
        axes.set_ylim(bottom=0)
        _step_axis(axes, _short_percent)

    alt = _from_to("validation word error rate", curve, percent)
    return {"title": "Word error rate", "unit": "on the validation clips", "svg": _svg("wer", alt, LARGE, draw)}


def _small_charts(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Draws learning rate, throughput and data wait, each as a line on an axis that begins at 0."""
    for key, title, caption, unit in (
        ("learning_rate", "Learning rate", "of the projector", "{:g}".format),
        ("audio_s_per_s", "Throughput", "seconds of audio per second", "{:,g}".format),
        ("data_wait_share", "Data wait", "share of a step's time", _short_percent),
    ):
        curve = _curve(lines, key)
        if not curve[0]:
            continue

        def draw(axes: Any, curve: Curve = curve, unit: Callable[[float], str] = unit) -> None:
            axes.plot(*curve, **TRAIN_LINE)
            axes.set_ylim(bottom=0)
            _step_axis(axes, unit)

        alt = _from_to(title.lower(), curve, unit)
        yield {"title": title, "unit": caption, "svg": _svg(key, alt, SMALL, draw)}


def _wer_rows(sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows of a WER table and the end of its bars' scale: the top of the highest interval, rounded up."""
    highest = max([row["ci_high"] for row in sets.values()] + [row["wer"] for row in sets.values()], default=0) or 0.01
    unit = 10.0 ** math.floor(math.log10(highest))
    return {"rows": list(sets.values()), "end": math.ceil(5 * highest / unit) / 5 * unit}  # to a fifth of its first digit


def _verdict(sets: dict[str, dict[str, Any]], controls: dict[str, dict[str, Any]]) -> str:
    """Says in one sentence what the headline WER is, and whether it beats every control's."""
    if not sets:
        return "This run has not been evaluated yet."
    headline = sets.get(HEADLINE_SET) or next(iter(sets.values()))
    verdict = (
        f"{percent(headline['wer'])} of the words are wrong on “{headline['label']}” (95\u00a0% interval {interval(headline)})"
    )
    if not controls:
        return verdict + "."
    control = min(controls.values(), key=lambda row: row["ci_low"])
    comparison = ", against" if headline["ci_high"] < control["ci_low"] else ": no better than"
    return f"{verdict}{comparison} {percent(control['wer'])} for the control “{control['label']}”."


def _tiles(evaluation: dict[str, Any], summary: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (title, value, remark) of every headline figure that the run has."""
    for row in evaluation.get("sets", {}).values():
        yield row["label"], percent(row["wer"]), f"word error rate (95\u00a0%:\u00a0{interval(row)})"
    if silence := evaluation.get("silence"):
        quiet = sum(not clip["text"] for clip in silence)
        yield "Silence and noise", f"{quiet} of {len(silence)}", "give an empty transcript"
    if "rtfx" in evaluation:
        yield "Transcription", f"{evaluation['rtfx']:,.{0 if evaluation['rtfx'] >= 10 else 1}f}×", "real time"
    if "train_seconds" in summary:
        yield "Training", duration(summary["train_seconds"]), f"{summary['steps']:,} steps" if "steps" in summary else ""


def _rejected(evaluation: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    """Returns (source, reason, number of training clips, number of test clips), most frequent first."""
    train, test = summary.get("rejected_train", {}), evaluation.get("rejected", {})
    keys = dict.fromkeys((source, reason) for counts in (train, test) for source in counts for reason in counts[source])
    rows = [(*key, *(counts.get(key[0], {}).get(key[1], 0) for counts in (train, test))) for key in keys]
    return sorted(rows, key=lambda row: (-row[2] - row[3], row[:2]))


def _http(summary: dict[str, Any]) -> list[tuple[str, str, str]] | None:
    if "http_transcript" not in summary or "http_reference" not in summary:
        return None
    return word_diff(summary["http_reference"], summary["http_transcript"])


def _worst(run_dir: Path, clips: dict[str, bytes], sets: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(worst_utterances(run_dir)):
        clip = clips.get(line["id"])
        yield {
            **line,
            "set_label": sets[line["set"]]["label"] if line["set"] in sets else line["set"],
            "diff": word_diff(line["reference"], line["hypothesis"]),
            "in_time": clip and line.get("words") and _words_in_time(f"words-{number}", clip, line["words"]),
            "audio": clip and f"data:audio/wav;base64,{base64.b64encode(clip).decode()}",
        }


def _words_in_time(name: str, clip: bytes, words: list[dict[str, Any]]) -> Markup:
    """Draws the sound of a WAV, and above it each word where it begins, in rows that leave room for them."""
    samples, rate = soundfile.read(io.BytesIO(clip), dtype="float32")
    loudest = [float(np.abs(part).max(initial=0)) for part in np.array_split(samples, WAVE_POINTS)]

    def draw(axes: Any) -> None:
        wave = np.array(loudest) / max(loudest, default=1) if any(loudest) else np.zeros(WAVE_POINTS)
        axes.fill_between(np.linspace(0, len(samples) / rate, WAVE_POINTS), -wave, wave, color=COLOURS["train"], linewidth=0)
        for number, word in enumerate(words):
            height = 1.25 + 0.6 * (WORD_ROWS - 1 - number % WORD_ROWS)
            axes.vlines(word["start_s"], -1, height, color=COLOURS["muted"], linewidth=0.6)
            axes.annotate(word["text"], (word["start_s"], height), (2, 0), textcoords="offset points", parse_math=False)
        axes.set(xlim=(0, len(samples) / rate), ylim=(-1.05, 1.25 + 0.6 * WORD_ROWS), yticks=[], xlabel="seconds")
        axes.spines["left"].set_visible(False)

    spoken = "; ".join(f"{word['text']} at {word['start_s']:.2f} s" for word in words)
    return _svg(name, f"Words in time: {spoken}", IN_TIME, draw)


def _comparison(run_dir: Path) -> dict[str, Any] | None:
    """What `ray_jobs.compare` left: rows of two rates and their difference, and the utterances that differ most."""
    result = _read_json(run_dir / "comparison.json")
    if not result:
        return None
    rows = [{"label": name, **score} for name, score in {**result["sets"], "overall": result["overall"]}.items()]
    return {**result, "rows": rows}


def _content(run_dir: Path, clips: dict[str, bytes]) -> dict[str, Any]:
    """Returns the values that the template shows, by the names it uses."""
    evaluation, summary = _read_json(run_dir / "evaluation.json"), _read_json(run_dir / "summary.json")
    lines, config = read_metrics(run_dir), run_dir / "config.yaml"
    sets, controls = evaluation.get("sets", {}), evaluation.get("controls", {})
    return {
        "name": run_dir.name,
        "verdict": _verdict(sets, controls),
        "tiles": list(_tiles(evaluation, summary)),
        "loss": _loss_chart(lines),
        "wer": _wer_chart(lines),
        "small": list(_small_charts(lines)),
        "tables": {"sets": _wer_rows(sets), "controls": _wer_rows(controls)},
        "silence": evaluation.get("silence", []),
        "overall": evaluation.get("overall"),
        "normalizers": evaluation.get("normalizers", {}),
        "comparison": _comparison(run_dir),
        "http": _http(summary),
        "worst": list(_worst(run_dir, clips, sets)),
        "evaluated": (run_dir / "utterances.jsonl").is_file(),
        "opinion": evaluation.get("second_opinion"),
        "rejected": _rejected(evaluation, summary),
        "reject_files": _read_json(run_dir / "training.json").get("reject_files", []),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }


def write_report(run_dir: Path, clips: dict[str, bytes]) -> Path:
    """Writes `run_dir`/report.html and returns its path.

    Args:
        run_dir: a run folder; for a file that it lacks, the page says so in that section.
        clips: WAV bytes of the `worst_utterances` by id; an utterance without them gets no player.
    """
    # Autoescape explicitly: jinja2's choice by file name does not know .jinja, and transcripts are untrusted text.
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=percent, interval=interval)
    page = environment.get_template(TEMPLATE).render(_content(Path(run_dir).resolve(), clips))
    report = Path(run_dir) / "report.html"
    report.write_text(page, encoding="utf-8", errors="replace")  # JSON can hold half a surrogate pair, UTF-8 cannot
    return report
