"""Makes a training fail in every way that it can, and shows that nothing is lost.

It trains twice, on a Ray cluster of several nodes that it starts on this machine: undisturbed, and then with workers killed
and frozen, with nodes, the driver, the head and the whole cluster lost, and with a damaged checkpoint. Every row must be
trained once or be rejected, and every loss must be the same to the last bit, or else the exit code is 1. It needs no GPU:

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
