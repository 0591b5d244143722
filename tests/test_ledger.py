"""The ledger of a run held against its shards. Of runs that are killed: test_chaos.py."""

import os
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_train import config_of, losses
from tiny_audio.config import ConfigError
from tiny_audio.ledger import LEDGER, EpochAudit, audit
from tiny_audio.local_nodes import kill, named_processes
from tiny_audio.metrics import read_lines, read_metrics
from tiny_audio.train import train

pytestmark = pytest.mark.usefixtures("local_ray")
WHOLE = EpochAudit(epoch=0, num_rows=26, num_trained=24, num_rejected=2, num_missing=0, num_twice=0)


def test_a_finished_epoch_has_every_row_once_or_a_reject(two_epochs):
    assert audit(two_epochs) == [WHOLE]  # the second epoch is not finished


def test_a_killed_worker_costs_no_row_and_changes_no_loss(two_epochs, shards, tmp_path):
    """Killed after step 3, on the way from the checkpoint of step 2: that interval is trained again. More in test_chaos.py."""
    config = config_of(shards, tmp_path, "killed", num_steps=8, max_failures=2)
    config.model.encoder_window = "trimmed"

    def wait_and_kill():
        while not any(line["step"] >= 3 for line in read_metrics(config.run_dir)):
            time.sleep(0.02)
        assert kill(named_processes(os.getpid(), "RayTrainWorker"))

    killer = threading.Thread(target=wait_and_kill, daemon=True)
    killer.start()
    train(config)
    killer.join(1)
    steps = [line["step"] for line in read_lines(config.run_dir)]
    assert len(steps) > len(set(steps)) + 1  # beside the last step's validation: something ran twice
    assert audit(config) == [WHOLE]
    assert losses(config) == losses(two_epochs)  # bit for bit


def test_a_row_that_is_lost_or_comes_twice_is_found(two_epochs, tmp_path):
    part = sorted((two_epochs.run_dir / LEDGER).iterdir())[0]
    table = pq.read_table(part)
    try:
        pq.write_table(pa.concat_tables([table.slice(1), table.slice(1, 2)]), part)
        (found,) = audit(two_epochs)
        assert (found.num_missing, found.num_twice) == (1, 2)
    finally:
        pq.write_table(table, part)
    its_dir, two_epochs.runs_dir = two_epochs.runs_dir, str(tmp_path)
    with pytest.raises(ConfigError, match=r"no ledger\.parquet there"):
        audit(two_epochs)
    two_epochs.runs_dir = its_dir
