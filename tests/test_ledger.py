"""The ledger of a run held against its shards. Of runs that are killed: test_chaos.py."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiny_audio.config import ConfigError
from tiny_audio.ledger import LEDGER, EpochAudit, audit

pytestmark = pytest.mark.usefixtures("local_ray")
WHOLE = EpochAudit(epoch=0, num_rows=26, num_trained=24, num_rejected=2, num_missing=0, num_twice=0)


def test_a_finished_epoch_has_every_row_once_or_a_reject(two_epochs):
    assert audit(two_epochs) == [WHOLE]  # the second epoch is not finished


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
