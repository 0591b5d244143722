"""The ledger of a run held against its shards. Of runs that are killed: test_chaos.py."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_train import config_of
from tiny_audio.config import ConfigError
from tiny_audio.ledger import LEDGER, EpochAudit, audit
from tiny_audio.train import train

pytestmark = pytest.mark.usefixtures("local_ray")
WHOLE = EpochAudit(epoch=0, num_rows=26, num_trained=24, num_rejected=2, num_missing=0, num_twice=0)


@pytest.fixture(scope="module")
def undisturbed(local_ray, shards, tmp_path_factory):
    config = config_of(shards, tmp_path_factory.mktemp("runs"), "undisturbed", num_steps=9)
    train(config)
    return config


def test_a_finished_epoch_has_every_row_once_or_a_reject(undisturbed):
    assert audit(undisturbed) == [WHOLE]  # the second epoch is not finished


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
