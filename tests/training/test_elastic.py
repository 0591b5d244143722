"""Runs go on while workers come and go: nodes of a local Ray are lost and return in the middle of a run."""

import json
import threading
import time
from itertools import groupby
from pathlib import Path

import pytest
import ray
import torch.distributed
from safetensors.torch import load_file

from tests.training.test_train import config_of, losses, scores
from tiny_audio.lab.local_nodes import LocalNode
from tiny_audio.run.audit import audit
from tiny_audio.run.checkpoint import latest_checkpoint
from tiny_audio.run.metrics import read_json_lines, read_metrics
from tiny_audio.training.driver import train

ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # written by a node that joins; it would outlive this Ray
SLOT = "worker_slot"  # stands in for a GPU: each node of the test has one, so it runs one worker


def loop_with(before_step):
    """Returns train_loop with a call before each step, as a closure, because workers cannot import a test module."""

    def loop(loop_config: dict) -> str:
        from tiny_audio.training import worker

        train_step = worker.Worker.train_step
        worker.Worker.train_step = lambda self, *args: before_step(self) or train_step(self, *args)
        return worker.train_loop(loop_config)

    return loop


def stand_still(holds):
    """Returns a call that stops the last worker while `holds` has its (number of workers, steps done); the others wait for it."""

    def hold(worker) -> None:
        while (worker.num_workers, worker.progress.step) in holds and worker.rank == worker.num_workers - 1:
            time.sleep(0.1)

    return hold


def run_config(shards, runs_dir, name, **changes):
    config = config_of(shards, runs_dir, name, num_steps=8, **changes)
    config.model.encoder_window = "trimmed"
    return config


def wait_for(condition, running=lambda: True, timeout_s: float = 150) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert running()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def num_slots() -> int:
    return sum(node["Resources"].get(SLOT, 0) for node in ray.nodes() if node["Alive"])


def add_node(gcs_address: str, folder: Path) -> LocalNode:
    """Starts a node with room for one worker and for no decode task."""
    resources = f"--resources={json.dumps({SLOT: 1})}"
    num_before = num_slots()
    node = LocalNode(str(folder), f"--address={gcs_address}", f"--node-ip-address={gcs_address.rsplit(':', 1)[0]}", resources)
    wait_for(lambda: num_slots() > num_before)
    return node


def has_logged(config, num_workers: int, step: int) -> bool:
    return any(
        (line.get("num_workers"), line["step"]) == (num_workers, step)
        for line in read_json_lines(config.run_dir / "metrics.jsonl")
    )


def assert_same_run(config, expected) -> None:
    assert losses(config) == pytest.approx(losses(expected), rel=1e-5)
    assert scores(config) == pytest.approx(scores(expected), rel=1e-5)
    counts = [json.loads((c.run_dir / "training.json").read_text()) for c in (config, expected)]
    assert counts[0]["rejects"] == counts[1]["rejects"]
    assert counts[0]["num_rows"] == counts[1]["num_rows"]
    (epoch,) = audit(config)  # the second epoch is not finished
    assert (epoch.num_rows, epoch.num_missing, epoch.num_twice) == (26, 0, 0)
    ours, theirs = (load_file(latest_checkpoint(c.run_dir) / "projector.safetensors") for c in (config, expected))
    for key in theirs:  # a step moves a weight by up to 1e-4
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def worker_counts(config) -> list[int]:
    """Lists the numbers of workers that a run had in turn, by its logged steps."""
    return [number for number, _ in groupby(line["num_workers"] for line in read_metrics(config.run_dir) if "loss" in line)]


@pytest.mark.slow  # two minutes
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_the_nodes_left_and_takes_in_new_ones(two_epochs, local_ray, shards, tmp_path, monkeypatch):
    """2 workers become 1 by the loss of a node, then 2 by a new node; each change repeats the steps since the checkpoint."""
    monkeypatch.setattr("tiny_audio.training.driver.RESIZE_CHECK_S", 1.0)
    monkeypatch.setattr("tiny_audio.training.driver.ELASTIC_START_TIMEOUT_S", 10)
    monkeypatch.setattr("tiny_audio.training.driver.worker_resources", lambda config: {SLOT: 1})
    holds = {(1, 0), (2, 3), (1, 5)}  # (1, 0): it begins with one worker if Ray's list of nodes, up to 20 s old, has only one
    monkeypatch.setattr("tiny_audio.training.driver._train_loop", loop_with(stand_still(holds)))
    config = run_config(shards, tmp_path, "elastic", num_workers=2, min_workers=1, zero_stage=2, max_failures=1)
    running = threading.Thread(target=train, args=(config,), daemon=True)
    nodes = []
    try:
        nodes += [add_node(local_ray.gcs_address, tmp_path)]
        nodes += [add_node(local_ray.gcs_address, tmp_path)]
        running.start()
        wait_for(lambda: has_logged(config, 2, 3), running.is_alive)
        wait_for(lambda: latest_checkpoint(config.run_dir), running.is_alive)  # that of step 2: one worker goes on to 5
        nodes[1].kill()
        wait_for(lambda: has_logged(config, 1, 5), running.is_alive)
        nodes.append(add_node(local_ray.gcs_address, tmp_path))
        running.join(150)
        assert not running.is_alive()
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.kill()
        ADDRESS_FILE.unlink(missing_ok=True)
    assert worker_counts(config) == [2, 1, 2]
    assert_same_run(config, two_epochs)
