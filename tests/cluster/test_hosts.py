"""Training on several hosts: a head without CPUs, hosts that decode, hosts that train, and a client outside.

What runs where is asked of Ray's own state, and each host can be cut off, slowed down or lost.
"""

import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, RayHosts, why_no_hosts
from tests.training.test_train import config_of
from tiny_audio.config_files import save_config
from tiny_audio.lab.local_nodes import wait_for
from tiny_audio.lab.process_names import DECODE_WORKER
from tiny_audio.ray_names import SUBCLUSTER, TRAIN_WORKER
from tiny_audio.run.audit import audit
from tiny_audio.run.metrics import read_lines

pytestmark = pytest.mark.skipif(bool(why_no_hosts()), reason=why_no_hosts())
DECODES = f"{SUBCLUSTER}=decode"
PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    """Starts a head, a host that decodes and one that trains, and a client that only submits."""
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder, RayHosts(Path(folder)) as hosts:
        hosts.start_head("head")
        hosts.start({"decode1": DECODES, "train1": ""})
        hosts.add("client")
        yield hosts


class Job:
    """A training that the client has submitted."""

    def __init__(self, hosts: RayHosts, config):
        self.config, self.log, self.head, self.id = config, config.run_dir / "job.log", hosts.head, uuid.uuid4().hex
        path = config.run_dir / "submitted.yaml"
        save_config(config, path)
        submit = ["ray", "job", "submit", "--address", hosts.api, "--submission-id", self.id, "--working-dir", "."]
        self.process = hosts["client"].popen(self.log, *submit, "--", "python", "-m", "ray_jobs.train", str(path))

    def printed(self) -> str:
        """What the driver has printed, read on the head: the client's copy comes minutes late where hosts were lost."""
        (log,) = [*self.head.folder.glob(f"ray/session_2*/logs/job-driver-{self.id}.log"), self.log][:1]
        return log.read_text()

    def wait(self, condition, what: str, timeout_s: float = PATIENCE_S) -> float:
        """Waits for something to come true while the job goes on; returns when it did."""

        def is_true() -> bool:
            assert condition() or self.process.poll() is None, f"the job ended before {what}: {self.printed()}"
            return condition()

        wait_for(is_true, what, timeout_s, poll_s=0.2)
        return time.monotonic()

    def has_step(self, step: int, after: int = 0) -> bool:
        """Whether a step has been logged in the lines after the first `after`."""
        return any(line["step"] >= step for line in read_lines(self.config.run_dir)[after:] if "loss" in line)

    def says(self, pattern: str) -> bool:
        """Whether a line that the driver printed matches."""
        return bool(re.search(pattern, self.printed()))

    def end(self) -> str:
        """Waits for its end; returns what the driver printed."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job does not end: {self.printed()}") from None
        return self.printed()

    def require_whole(self) -> None:
        """Waits for its end, and has the audit find every row once."""
        log = self.end()
        assert f"the run is over: all {self.config.num_steps} steps are done" in log, log
        epochs = audit(self.config)
        assert epochs
        assert all(epoch.is_whole for epoch in epochs), epochs


def config_on_hosts(shards, runs_dir, name, **changes):
    config = config_of(shards, runs_dir, name, **{"num_steps": 6, **changes})  # 5 finish an epoch
    config.model.encoder_window = "trimmed"
    config.data.decode_label = "decode"
    config.data.max_wer_rows = 0
    config.trackers = []
    return config


def places(hosts: RayHosts, kind: str, name: str, what: str) -> set[str]:
    """The names of the hosts on which Ray says that tasks or actors ran."""
    rows = [row for row in hosts.state(kind) if name in row[what] and row["node_id"]]
    addresses = {row["node_id"]: row["node_ip"] for row in hosts.state("nodes")}
    names = {host.address: host.name for host in hosts.by_name.values()}
    return {names[addresses[row["node_id"]]] for row in rows}


def training_hosts(hosts: RayHosts) -> list[Host]:
    """The hosts with a training worker now."""
    return [host for host in hosts.by_name.values() if host.processes(TRAIN_WORKER)]


@pytest.mark.slow
def test_decoding_and_training_have_hosts_of_their_own(hosts, shards, tmp_path):
    Job(hosts, config_on_hosts(shards, tmp_path, "placed")).require_whole()
    assert places(hosts, "tasks", DECODE_WORKER, "name") == {"decode1"}
    assert places(hosts, "actors", TRAIN_WORKER, "class_name") == {"train1"}


@pytest.mark.slow  # two minutes
@pytest.mark.timeout(600)
def test_a_host_behind_a_slow_link_whose_name_resolves_to_loopback_trains(hosts, shards, tmp_path):
    """Without it there is no place for its worker, not even on the host that decodes, and one line says so."""
    refused = Job(hosts, config_on_hosts(shards, tmp_path, "refused", num_workers=2)).end()
    assert "ray_jobs.train: 2 workers each want a CPU, and there is room for 1 off the decode nodes; start" in refused, refused
    hosts.start({"slow1": ""}, resolves_to="127.0.1.1", delay_s=0.02, bytes_per_s=5e6)
    Job(hosts, config_on_hosts(shards, tmp_path, "slow", num_workers=2, zero_stage=2)).require_whole()
    hosts.remove("slow1")


@pytest.mark.slow  # four minutes
@pytest.mark.timeout(900)
def test_the_worker_of_a_host_that_is_cut_off_ends_by_itself(hosts, shards, tmp_path):
    """Another host takes its place. Later the host comes back, and is of use again."""
    hosts.start({"train2": "", "train3": ""})
    job = Job(hosts, config_on_hosts(shards, tmp_path, "cut", num_steps=120, num_workers=2, max_failures=2, checkpoint_every=20))
    job.wait(lambda: job.has_step(20), "step 20")
    cut_off = training_hosts(hosts)[-1]
    old = cut_off.processes(TRAIN_WORKER)
    cut_off.cut()
    job.wait(lambda: job.says("the workers start again"), "another start")
    started_at = job.wait(lambda: len(training_hosts(hosts)) > 2 or not cut_off.processes(TRAIN_WORKER), "its workers")
    job.wait(lambda: not any(process.is_running() for process in old), "the end of the old worker", 60.0)
    assert time.monotonic() - started_at < 60
    assert job.says(rf"rank [01] on {cut_off.name}: its process died, last heard of .*; the workers start again, from step"), (
        job.end()
    )
    cut_off.mend()
    cut_off.run("ray", "stop", "--force", check=False)
    hosts.join({cut_off.name: ""})
    job.require_whole()
    again = Job(hosts, config_on_hosts(shards, tmp_path, "again", num_workers=3))
    again.require_whole()
    assert places(hosts, "actors", TRAIN_WORKER, "class_name") >= {"train1", "train2", "train3"}
    hosts.remove("train2")
    hosts.remove("train3")


@pytest.mark.slow  # three minutes
@pytest.mark.timeout(900)
def test_decode_hosts_are_lost_one_after_the_other(hosts, shards, tmp_path):
    hosts.start({"decode2": DECODES})
    job = Job(hosts, config_on_hosts(shards, tmp_path, "decode", num_steps=120, checkpoint_every=20))
    job.wait(lambda: job.has_step(10), "step 10")
    hosts.remove("decode1")
    num_lines = len(read_lines(job.config.run_dir))
    job.wait(lambda: job.has_step(20, num_lines), "steps on the decode host that is left")
    hosts.remove("decode2")
    said = r"no node with the label ray-subcluster=decode is up \(gone: decode1, decode2\), .*; start one"
    job.wait(lambda: job.says(said), "a line on the decode hosts")
    hosts.start({"decode3": DECODES})
    job.require_whole()


@pytest.mark.slow  # three minutes
@pytest.mark.timeout(900)
def test_workers_that_have_lost_their_head_end_within_a_minute_of_the_next_start(hosts, shards, tmp_path):
    config = config_on_hosts(shards, tmp_path, "headless", num_steps=120, checkpoint_every=20)
    job = Job(hosts, config)
    job.wait(lambda: job.has_step(40), "step 40")
    old = hosts["train1"].processes(TRAIN_WORKER)
    hosts.remove("head")
    hosts.start_head("head2")
    hosts.start({"decode4": DECODES, "train4": ""})
    num_lines = len(read_lines(config.run_dir))
    again = Job(hosts, config)
    again.wait(lambda: again.has_step(1, num_lines), "the first step of the new start")
    wait_for(lambda: not any(process.is_running() for process in old), "the end of the old worker", 60.0)
    again.require_whole()
