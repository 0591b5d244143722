"""Strikes a training in every way it can die or hang, and shows that nothing was lost.

It trains twice on a Ray of several nodes that it starts on this machine: in peace, then with workers killed and frozen, nodes,
the driver, the head and the whole cluster lost, a checkpoint damaged. Every row must be trained once or rejected, every loss
be the same to the last bit; exit code 1 if not. Without GPUs:

python -m ray_jobs.chaos ray_jobs/configs/quickstart.yaml num_steps=96
"""

import sys

from ray_jobs.command import run_command
from ray_jobs.ledger import audit_line
from tiny_audio.config import TrainConfig


def run(config: TrainConfig) -> None:
    from tiny_audio.lab.drills.chaos import chaos

    outcome = chaos(config, lambda line: print(line, flush=True))
    for epoch in outcome.epochs:
        print(audit_line(epoch))
    unequal = ", ".join(map(str, outcome.unequal_steps))
    print(f"losses: {'not those of the run in peace at steps ' + unequal if unequal else 'equal at every step, to the last bit'}")
    sys.exit(not outcome.nothing_lost or bool(unequal))


if __name__ == "__main__":
    run_command(__doc__, TrainConfig, run)
