"""Breaks a training in every way it can die or hang, and shows that nothing was lost.

It trains twice on a Ray of several nodes that it starts on this machine. The first training is left alone. In the second
it kills and freezes workers, takes away nodes, the driver, the head and the whole cluster, and damages a checkpoint. Every
row must be trained once or rejected, and every loss must be the same to the last bit; the exit code is 1 if not. It needs
no GPU:

python -m ray_jobs.chaos ray_jobs/configs/quickstart.yaml num_steps=96
"""

import sys

from ray_jobs.command import run_command
from tiny_audio.config import TrainConfig


def run(config: TrainConfig) -> None:
    from ray_jobs.ledger import audit_line
    from tiny_audio.lab.drills.chaos import chaos

    outcome = chaos(config, lambda line: print(line, flush=True))
    for epoch in outcome.epochs:
        print(audit_line(epoch))
    unequal = ", ".join(map(str, outcome.unequal_steps))
    print("losses: " + (f"unequal at steps {unequal}" if unequal else "equal at every step, to the last bit"))
    sys.exit(not outcome.nothing_lost or bool(unequal))


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
