"""Audits a run: was every row of every finished epoch trained once, or rejected with a reason? If not, the exit code is 1.

python -m ray_jobs.ledger runs/quickstart/config.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ray_jobs.command import run_command
from tiny_audio.config import TrainConfig

if TYPE_CHECKING:
    from tiny_audio.run.audit import EpochAudit


def audit_line(row: EpochAudit) -> str:
    """Writes the audit of an epoch for people."""
    return (
        f"epoch {row.epoch}: {row.num_rows} rows, {row.num_trained} trained, {row.num_rejected} rejected, "
        f"{row.num_missing} missing, {row.num_twice} twice"
    )


def run(config: TrainConfig) -> None:
    from tiny_audio.run.audit import audit

    epochs = audit(config)
    for epoch in epochs:
        print(audit_line(epoch))
    if not epochs:
        print("no epoch is finished yet")
    sys.exit(not all(epoch.is_whole for epoch in epochs))


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
