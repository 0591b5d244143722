"""The ledger of a run held against its shards. Of runs that are killed: test_chaos.py."""

import os
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_train import config_of, losses
from tiny_audio.config import ConfigError
from tiny_audio.ledger import LEDGER, SCHEMA, EpochAudit, audit
from tiny_audio.local_nodes import kill, named_processes
from tiny_audio.metrics import read_lines, read_metrics
from tiny_audio.parts import write_part
from tiny_audio.rejects import REJECTS
from tiny_audio.rejects import SCHEMA as REJECTS_SCHEMA
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


def test_an_epoch_of_rejects_alone_and_rows_without_an_id_are_counted(tmp_path):
    ids = [b"row-1", None, b"row-\xff", b"row-2"]
    shard = tmp_path / "train/one.parquet"
    shard.parent.mkdir()
    table = pa.Table.from_pylist([{"wav": {"bytes": b"", "path": ""}, "text": "word"}] * len(ids))
    pq.write_table(table.append_column("ID", pa.array(ids, pa.binary()).view(pa.string())), shard)
    config = config_of(tmp_path, tmp_path, "run", num_steps=4)
    config.data.batch_rows, config.data.steps_per_window = 4, 1  # a step is an epoch
    rejects = [{"epoch": 0, "step": 0, "id": name} for name in ("row-1", "", "", "row-2")]
    rejects += [{"epoch": 1, "step": 1, "id": ""}] * 2
    write_part(config.run_dir / REJECTS, 2, 0, rejects, REJECTS_SCHEMA)
    trained = [{"epoch": 1, "step": 1, "id": name} for name in ("row-1", "row-2")]
    write_part(config.run_dir / LEDGER, 2, 0, trained, SCHEMA)
    assert audit(config) == [EpochAudit(0, 4, 0, 4, 0, 0), EpochAudit(1, 4, 2, 2, 0, 0)]
