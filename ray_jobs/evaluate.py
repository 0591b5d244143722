"""Scores a trained model on test shards: the word error rate of each set with its 95 % interval, and controls that must fail.

python -m ray_jobs.evaluate ray_jobs/configs/evaluate.yaml model=runs/quickstart/model
"""

from tqdm import tqdm

from ray_jobs.command import run_command, start_ray
from tiny_audio.counts import rejects_line
from tiny_audio.evaluation.config import EvaluateConfig
from tiny_audio.storage import require_model


def _table(result: dict) -> str:
    lines = [f"{'':24}{'WER':>8}   95 % interval      plain WER      CER    loops   utterances"]
    for score in [*result["sets"].values(), result["overall"], *result["controls"].values()]:
        interval = f"{score['ci_low']:.1%} to {score['ci_high']:.1%}"
        others = "".join(f"{score[key]:>9.2%}" if key in score else " " * 9 for key in ("wer_plain", "cer", "loop_rate"))
        lines.append(f"{score['label']:24}{score['wer']:>8.2%}   {interval:18}{others}   {score['num_utterances']}")
    names, unguarded = result["normalizers"], result["overall"]["unguarded_loop_rate"]
    lines.append(f"WER: {names['headline']}; plain WER: {names['plain']}; loops without the guard against them: {unguarded:.2%}")
    return "\n".join(lines)


def run(config: EvaluateConfig) -> None:
    require_model(config.model)  # at once: the next line takes seconds
    from tiny_audio.evaluation.evaluate import evaluate

    bar = lambda rows, total: tqdm(rows, total=total, desc="transcribed", unit="row", mininterval=1)  # noqa: E731
    result = evaluate(config, bar, lambda: start_ray(num_gpus=config.num_actors * config.use_gpu))
    print(_table(result))
    if result["silence"]:
        rates = result["silence_rates"]
        heard = f"{rates['clips_with_words']:.0%} have words, {rates['words_per_minute']:.1f} a minute"
        print(f"{len(result['silence'])} clips of silence and noise: {heard}")
    opinion = result["second_opinion"]
    if opinion and (opinion["num_doubtful_texts"] or opinion["num_doubtful_labels"]):
        doubtful = f"{opinion['num_doubtful_texts']} texts and {opinion['num_doubtful_labels']} labels"
        print(f"the CTC head doubts {doubtful} of {opinion['num_utterances']}: see doubtful_labels in evaluation.json")
    if result["rejected"]:
        print("rejected: " + rejects_line(result["rejected"]))


if __name__ == "__main__":
    run_command(__doc__, EvaluateConfig, run)
