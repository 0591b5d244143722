"""Compares two evaluations of the same utterances: the difference of their word error rates, and where they differ most.

python -m ray_jobs.compare runs/quickstart runs/tuned

A and B are folders with an utterances.jsonl, as training runs and ray_jobs.evaluate leave them. Writes comparison.json into B.
"""

import argparse
import json
import sys
from pathlib import Path

from tiny_audio.config import ConfigError
from tiny_audio.evaluation.compare import compare


def _verdict(score: dict) -> str:
    if score["ci_low"] <= 0 <= score["ci_high"]:
        return "no difference that these utterances show"
    return "B is better" if score["difference"] < 0 else "A is better"


def _table(result: dict) -> str:
    lines = [f"A {result['a']}", f"B {result['b']}", f"{'':16}{'A':>8}{'B':>8}{'B - A':>9}   95 % interval"]
    for name, score in {**result["sets"], "overall": result["overall"]}.items():
        interval = f"{100 * score['ci_low']:+.2f} to {100 * score['ci_high']:+.2f}"
        rates = f"{score['wer_a']:>8.2%}{score['wer_b']:>8.2%}{100 * score['difference']:>+9.2f}"
        lines.append(f"{name:16}{rates}   {interval:18} {_verdict(score)}")
    for pair in result["most_different"]:
        lines += [f"\n{pair['id']}: {pair['errors_a']} errors in A, {pair['errors_b']} in B", f"  said {pair['reference']}"]
        lines += [f"  A    {pair['hypothesis_a']}", f"  B    {pair['hypothesis_b']}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", type=Path, help="folder of the first evaluation")
    parser.add_argument("b", metavar="B", type=Path, help="folder of the second evaluation")
    arguments = parser.parse_args()
    try:
        result = compare(arguments.a, arguments.b)
    except ConfigError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    (arguments.b / "comparison.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_table(result))


if __name__ == "__main__":
    main()
