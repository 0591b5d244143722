"""The ledger of a run compared with its shards. For runs that are killed, see test_chaos.py."""

import os
import re
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.test_train import config_of, losses
from tiny_audio.config import ConfigError
from tiny_audio.lab.local_nodes import kill, named_processes
from tiny_audio.ray_names import TRAIN_WORKER
from tiny_audio.run.audit import EpochAudit, PlannedFile, Rejected, audit, audit_epoch
from tiny_audio.run.checkpoint import has_checkpoint
from tiny_audio.run.ledger import LEDGER, SCHEMA, write_ledger
from tiny_audio.run.metrics import read_lines, read_metrics
from tiny_audio.run.parts import write_part
from tiny_audio.run.rejects import REJECTS
from tiny_audio.run.rejects import SCHEMA as REJECTS_SCHEMA
from tiny_audio.training.driver import train

pytestmark = pytest.mark.usefixtures("local_ray")
WHOLE = EpochAudit(epoch=0, num_rows=26, num_trained=24, num_rejected=2, num_missing=0, num_twice=0)


def test_a_finished_epoch_has_every_row_once_or_a_reject(two_epochs):
    assert audit(two_epochs) == [WHOLE]  # the second epoch is not finished


def test_a_killed_worker_costs_no_row_and_changes_no_loss(two_epochs, shards, tmp_path, capsys):
    """It is killed after step 3, and the interval since the checkpoint of step 2 is trained again. More in test_chaos.py."""
    config = config_of(shards, tmp_path, "killed", num_steps=8, max_failures=2)
    config.model.encoder_window = "trimmed"

    def wait_and_kill():
        while not (any(line["step"] >= 3 for line in read_metrics(config.run_dir)) and has_checkpoint(config.run_dir)):
            time.sleep(0.02)
        assert kill(named_processes(os.getpid(), TRAIN_WORKER))

    killer = threading.Thread(target=wait_and_kill, daemon=True)
    killer.start()
    train(config)
    killer.join(1)
    warning = (
        r"warning: rank 0 on \S+: its process died, last heard of [a-z ]+ at step \d; the workers start again, from step (\d)\n"
    )
    assert int(re.search(warning, capsys.readouterr().err)[1]) >= 2
    steps = [line["step"] for line in read_lines(config.run_dir) if "warning" not in line]
    assert len(steps) > len(set(steps)) + 1  # beside the last step's validation: something ran twice
    assert audit(config) == [WHOLE]
    assert losses(config) == losses(two_epochs)  # bit for bit


def test_a_row_that_is_lost_or_comes_twice_is_found(two_epochs, tmp_path):
    part = sorted((two_epochs.run_dir / LEDGER).iterdir())[0]
    table = pq.read_table(part)
    try:
        pq.write_table(pa.concat_tables([table.slice(1), table.slice(1, 2)]), part)
        (epoch,) = audit(two_epochs)
        assert (epoch.num_missing, epoch.num_twice) == (1, 2)
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
    write_part(config.run_dir / REJECTS, 2, pa.Table.from_pylist(rejects, REJECTS_SCHEMA))
    trained = [{"epoch": 1, "step": 1, "id": name} for name in ("row-1", "row-2")]
    write_ledger(config.run_dir, 2, [pa.Table.from_pylist([row], SCHEMA) for row in trained])
    assert audit(config) == [EpochAudit(0, 4, 0, 4, 0, 0), EpochAudit(1, 4, 2, 2, 0, 0)]


def plain(row_id: str) -> int:
    return 1


def halves(row_id: str) -> int:
    """Takes some rows twice and some never, as source weights do."""
    return 2 if row_id.startswith("twice") else 0 if row_id.startswith("never") else 1


def planned(*ids: str, times: int = 1, copies=plain) -> PlannedFile:
    """A file that can be read now."""
    return PlannedFile(len(ids) * times, Counter({row_id: n * times * copies(row_id) for row_id, n in Counter(ids).items()}))


GONE = PlannedFile(4, Counter(), is_readable=False)
AB = {"a.parquet": planned("a-1", "a-2"), "b.parquet": planned("b-1", "b-2", "")}


@pytest.mark.parametrize(
    ("files", "trained", "rejects", "expected"),
    [
        (AB, "a-1 a-2 b-1 b-2", {("b.parquet", ""): 1}, (0, 0)),
        (AB, "a-1 b-1 b-2", {("b.parquet", ""): 1}, (1, 0)),
        (AB, "a-1 a-1 a-2 b-1 b-2", {("b.parquet", ""): 1}, (0, 1)),
        (AB, "a-1 a-2 b-1 b-2", {("b.parquet", "b-1"): 1, ("b.parquet", ""): 1}, (0, 1)),
        (AB, "a-1 a-2", {"b.parquet": 3}, (0, 0)),
        (AB, "a-1 b-1 b-2", {"b.parquet": 1}, (1, 0)),  # stands for the row without an ID, and for none of another file
        (AB, "a-2 b-1 b-2", {("b.parquet", ""): 1, ("moved.parquet", "a-1"): 1}, (0, 0)),
        ({"a.parquet": GONE}, "x-1 x-2 x-2", {("a.parquet", ""): 1}, (0, 0)),
        ({"a.parquet": GONE}, "x-1 x-2", {"a.parquet": 2}, (0, 0)),
        ({"a.parquet": GONE}, "x-1 x-2", {"a.parquet": 1}, (1, 0)),
        ({"a.parquet": GONE}, "x-1 x-2 x-3 x-4", {"a.parquet": 1}, (0, 1)),
        ({"a.parquet": GONE, "b.parquet": planned("b-1")}, "x-1 x-2 x-3 b-1 b-1", {}, (1, 1)),
        ({"a.parquet": planned("a-1", "a-2", "a-3", times=2)}, "a-3 a-3", {"a.parquet": 4}, (0, 0)),
        ({"a.parquet": planned("a-1", "a-2", "a-3", times=2)}, "a-3", {"a.parquet": 4}, (1, 0)),
    ],
)
def test_what_was_trained_and_rejected_is_held_against_each_file(files, trained, rejects, expected):
    rejected = Rejected(
        Counter({key: count for key, count in rejects.items() if isinstance(key, tuple)}),
        Counter({key: count for key, count in rejects.items() if isinstance(key, str)}),
    )
    counts = audit_epoch(0, files, Counter(trained.split()), rejected, plain)
    assert (counts.num_missing, counts.num_twice) == expected


def test_a_row_that_is_taken_twice_is_rejected_once():
    files = {"a.parquet": planned("twice-1", "twice-2", "never-1", "once-1", copies=halves)}
    trained = Counter({"twice-1": 2, "once-1": 1})
    for rejected in (Rejected(rows=Counter({("a.parquet", "twice-2"): 1})), Rejected(unreadable=Counter({"a.parquet": 1}))):
        counts = audit_epoch(0, files, trained, rejected, halves)
        assert (counts.num_missing, counts.num_twice) == (0, 0)
    assert audit_epoch(0, files, trained, Rejected(), halves).num_missing == 2
