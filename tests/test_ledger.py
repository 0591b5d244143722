"""Nothing lost, nothing twice: the ledger of a run that was killed, held against its shards."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.test_train import config_of, losses
from tiny_audio.config import ConfigError
from tiny_audio.ledger import LEDGER, EpochAudit, audit
from tiny_audio.metrics import METRICS_FILE, read_metrics
from tiny_audio.train import train

pytestmark = pytest.mark.usefixtures("local_ray")
WHOLE = EpochAudit(epoch=0, num_rows=26, num_trained=24, num_rejected=2, num_missing=0, num_twice=0)


def worker_pids() -> list[int]:
    """Ray Train's workers of this test's Ray: by the name that Ray gives their processes, and by their raylet's folder."""
    session = ray._private.worker.global_worker.node.get_session_dir_path().encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if b"RayTrainWorker" in (folder / "cmdline").read_bytes() and session in Path(f"/proc/{parent}/cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_a_worker_after(run_dir: Path, step: int) -> threading.Thread:
    """A thread that kills one worker, once, when the run has logged `step`."""

    def wait_and_kill():
        while not any(line["step"] >= step for line in read_metrics(run_dir)):
            time.sleep(0.02)
        os.kill(worker_pids()[0], signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def undisturbed(local_ray, shards, tmp_path_factory):
    config = config_of(shards, tmp_path_factory.mktemp("runs"), "undisturbed", num_steps=9)
    train(config)
    return config


def test_a_finished_epoch_has_every_row_once_or_a_reject(undisturbed):
    assert audit(undisturbed) == [WHOLE]  # the second epoch is not finished


def test_a_killed_worker_costs_no_row_and_changes_no_loss(undisturbed, shards, tmp_path):
    """Killed after step 3 or later, on the way from the checkpoint of step 2: that interval is trained again."""
    config = config_of(shards, tmp_path, "killed", num_steps=9, max_failures=2)
    killer = kill_a_worker_after(config.run_dir, 3)
    train(config)
    killer.join(1)
    steps = [json.loads(line)["step"] for line in (config.run_dir / METRICS_FILE).read_text().splitlines()]
    assert len(steps) > len(set(steps)) + 1  # beside the last step's validation: something ran twice
    assert audit(config) == [WHOLE]
    assert losses(config) == losses(undisturbed)  # bit for bit


def test_a_row_that_is_lost_or_comes_twice_is_found(undisturbed, tmp_path):
    part = sorted((undisturbed.run_dir / LEDGER).iterdir())[0]
    table = pq.read_table(part)
    try:
        pq.write_table(pa.concat_tables([table.slice(1), table.slice(1, 2)]), part)
        (found,) = audit(undisturbed)
        assert (found.num_missing, found.num_twice) == (1, 2)
    finally:
        pq.write_table(table, part)
    undisturbed_dir, undisturbed.runs_dir = undisturbed.runs_dir, str(tmp_path)
    with pytest.raises(ConfigError, match=r"no ledger\.parquet there"):
        audit(undisturbed)
    undisturbed.runs_dir = undisturbed_dir
