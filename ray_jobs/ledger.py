"""Audits a run: was every row of every finished epoch trained once, or rejected with a reason? Exit code 1 if not.

python -m ray_jobs.ledger runs/quickstart/config.yaml
"""

import sys

from ray_jobs.command import run_command
from tiny_audio.config import TrainConfig
from tiny_audio.run.audit import EpochAudit, audit


def audit_line(row: EpochAudit) -> str:
    """An epoch's audit for people."""
    return (
        f"epoch {row.epoch}: {row.num_rows} rows, {row.num_trained} trained, {row.num_rejected} rejected, "
        f"{row.num_missing} missing, {row.num_twice} twice"
    )


def run(config: TrainConfig) -> None:
    found = audit(config)
    for row in found:
        print(audit_line(row))
    if not found:
        print("no epoch is finished yet")
    sys.exit(not all(row.is_whole for row in found))


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
