"""The doctor: every check fails when it should, names the node and the remedy; and a healthy Ray passes them all."""

import dataclasses
import json

import pytest
import ray

from tests.conftest import DECODER, ENCODER, write_shard
from tests.training.test_train import config_of
from tiny_audio.cluster import checks, node
from tiny_audio.cluster.doctor import check_inputs, examine
from tiny_audio.cluster.findings import Verdict, finding_table, is_healthy
from tiny_audio.cluster.node import NodeFacts
from tiny_audio.cluster.probe import Node
from tiny_audio.config import TrainConfig
from tiny_audio.data.stream import SUBCLUSTER
from tiny_audio.lab.local_nodes import LocalNode

H100 = "NVIDIA H100 80GB HBM3, driver 580.65.06"
STORE_BYTES = 20 * 2**30


def facts(**changes):
    healthy = NodeFacts(
        versions={"python": "3.11.9", "torch": "2.11.0"},
        devices=[],
        host_name="host",
        resolved_ip="10.0.0.1",
        shared_memory_gib=24.0,
        free_disk_gib=150.0,
        disk_gib=200.0,
    )
    return dataclasses.replace(healthy, **changes)


def a_node(name, cpus=16, gpus=0, labels=None, facts_=None, **changes):
    resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": STORE_BYTES}
    described = facts_ or facts(devices=[H100] * gpus)
    fields = {"ip": f"10.0.0.{len(name)}", "is_head": False, "reads_and_writes": (200.0, 300.0), "unreachable": {}, **changes}
    return Node(name=name, labels=labels or {}, resources=resources, facts=described, **fields)


def cluster(**of_gpu_node):
    """A decode node and one of 8 GPUs, which differs from a healthy one by `of_gpu_node`."""
    return [a_node("decode", labels={SUBCLUSTER: "decode"}), a_node("gpu", **{"gpus": 8, **of_gpu_node})]


def config(**changes):
    made = TrainConfig(num_workers=8)
    made.data.decode_label = "decode"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def all_checks(nodes, settings):
    return [
        *checks.check_versions(nodes),
        *checks.check_devices(nodes, settings),
        *checks.check_places(nodes, settings),
        *checks.check_names(nodes),
        *checks.check_ports(nodes),
        *checks.check_clocks(nodes),
        *checks.check_storage(nodes, "/mnt/shared/runs"),
        *checks.check_weights(nodes, settings),
        *checks.check_memory(nodes),
    ]


def test_a_healthy_cluster_passes():
    cpu_torch = facts(versions={"python": "3.11.9", "torch": "2.11.0+cpu"})
    nodes = [a_node("decode", labels={SUBCLUSTER: "decode"}, facts_=cpu_torch), cluster()[1]]
    found = all_checks(nodes, config())
    assert {finding.verdict for finding in found} == {Verdict.OK}, finding_table(found)


@pytest.mark.parametrize(
    ("nodes", "verdict", "said"),
    [
        (cluster(facts_=facts(versions={"python": "3.11.9", "torch": "2.10.0"}, devices=[H100])), "FAIL", "torch 2.1"),
        (cluster(facts_=facts(devices=[])), "FAIL", "nvidia-smi shows no GPU"),
        (cluster(facts_=facts(devices=["NVIDIA H100, driver 570.1"])), "FAIL", "driver 570.1"),
        (cluster(facts_=facts(devices=[H100, "NVIDIA L4, driver 580.1"])), "warn", "1 x NVIDIA L4"),
        (cluster(facts_=facts(devices=[H100], resolved_ip="127.0.1.1")), "warn", "host resolves to 127.0.1.1"),
        (cluster(facts_=facts(devices=[H100], resolved_ip="")), "warn", "host resolves to nothing"),
        (cluster(facts_=facts(devices=[H100], shared_memory_gib=0.06)), "FAIL", "/dev/shm 0.1 GiB"),
        (cluster(facts_=facts(devices=[H100], free_disk_gib=9.0)), "FAIL", "9 GiB of 200 are free"),
        (cluster(facts_=facts(devices=[H100], free_disk_gib=15.0)), "warn", "15 GiB of 200 are free"),
        (cluster(facts_=facts(devices=[H100], missing_weights={"a/b": "not in HF_HOME yet"})), "warn", "a/b: not in HF_HOME"),
        (cluster(facts_=facts(devices=[H100], missing_weights={"/w": "/w: lacks it"})), "FAIL", "/w: lacks it"),
        (cluster(clock_offset_s=-7.0), "warn", "-7.0 s"),
        (cluster(unreachable={"decode": "timed out"}), "FAIL", "cannot connect to decode: timed out"),
        (cluster(storage_problem="/mnt/shared/runs: Permission denied"), "FAIL", "Permission denied"),
        (cluster(reads_and_writes=(20.0, 300.0)), "warn", "20 MB/s written"),
        (cluster(labels={SUBCLUSTER: "train"}), "FAIL", "a GPU node labelled ray-subcluster=train"),
        ([a_node("gpu", gpus=8)], "FAIL", "no node has the label ray-subcluster=decode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_check_names_node_and_remedy(nodes, verdict, said, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (found,) = [finding for finding in all_checks(nodes, config()) if finding.verdict != Verdict.OK]
    assert found.verdict == verdict
    assert said in found.detail
    assert found.place in {"cluster", *(each.name for each in nodes)}
    assert found.remedy
    assert is_healthy([found]) == (verdict == "warn")
    assert f"remedy: {found.remedy}" in finding_table([found])


def test_a_cluster_of_cpus_must_hold_both_the_workers_and_decode():
    nodes = [a_node("decode", labels={SUBCLUSTER: "decode"}), a_node("train", cpus=2)]
    on_cpus = config(use_gpu=False, num_workers=4)
    assert "4 workers each want a CPU, and there is room for 2 off" in checks.check_places(nodes, on_cpus)[0].detail
    on_cpus.data.decode_label = None
    assert is_healthy(checks.check_places(nodes, on_cpus))
    assert not is_healthy(checks.check_places([a_node("small", cpus=4)], on_cpus))


def test_weights_that_cannot_be_fetched_are_a_failure(monkeypatch):
    lacking = cluster(facts_=facts(devices=[H100], missing_weights={"a/b": "not in HF_HOME yet"}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_healthy(checks.check_weights(lacking, config()))


# ---- what a node tells of itself


def test_a_closed_port_and_an_open_one():
    port = node.listen("127.0.0.1")
    problems = node.unreachable({"open": ("127.0.0.1", port), "closed": ("127.0.0.1", 1)})
    assert problems == {"closed": "Connection refused"}


def test_storage_is_written_and_read(tmp_path):
    speed, problem = node.write_payload(tmp_path / "a.bin")
    assert speed > 0
    assert not problem
    assert node.read_payload(tmp_path / "a.bin")[1] == ""
    (tmp_path / "a.bin").write_bytes(b"cut short")
    assert "9 bytes are there" in node.read_payload(tmp_path / "a.bin")[1]
    assert "cannot be read or written" in node.read_payload(tmp_path / "not_shared.bin")[1]
    assert "cannot be read or written" in node.write_payload(tmp_path / "a.bin" / "below_a_file")[1]


def test_weights_are_looked_for_in_folders_and_in_the_hub_cache(tmp_path, monkeypatch):
    assert node.lacking_weights(ENCODER) == ""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    assert "truncated" in node.lacking_weights(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert node.lacking_weights("owner/name") == "not in HF_HOME yet"


def test_names_and_versions_are_this_machines():
    assert node.resolve("localhost").startswith("127.")
    assert node.resolve("no-such-host.invalid") == ""
    assert node.installed_versions()["ray"] == ray.__version__


def test_inputs_are_checked_as_train_does(tmp_path):
    settings = TrainConfig()
    settings.data.train, settings.data.dev = "nowhere/*.parquet", str(tmp_path / "dev.parquet")
    settings.model.audio_model_id, settings.model.text_model_id = ENCODER, DECODER
    write_shard(tmp_path / "dev.parquet", [("a", b"", "a")])
    data, backbones, trackers = check_inputs(settings)
    assert (data.verdict, data.detail) == (Verdict.FAIL, "nowhere/*.parquet: no such Parquet shards")
    assert data.remedy.startswith("give a glob")
    assert (backbones.verdict, trackers.verdict) == (Verdict.OK, Verdict.OK)


# ---- a real Ray


def test_two_nodes_that_are_well_and_what_is_not(local_ray, shards, tmp_path, monkeypatch):
    settings = config_of(shards, tmp_path / "runs", "examined", num_workers=2)
    settings.data.decode_label = "decode"
    folder = tmp_path / "ray"
    folder.mkdir()
    labels = json.dumps({SUBCLUSTER: "decode"})
    address = local_ray.gcs_address
    here = f"--node-ip-address={address.rsplit(':', 1)[0]}"
    added = LocalNode(str(folder), f"--address={address}", here, f"--labels={labels}", num_cpus=1)
    said = []
    try:
        well = examine(settings, lambda: None, said.append)
        settings.num_workers = settings.data.batch_rows = 64
        ill = examine(settings, lambda: None, said.append, places_timeout_s=0.5)
        monkeypatch.setattr("tiny_audio.cluster.probe.ANSWER_TIMEOUT_S", 0.001)
        silent = examine(settings, lambda: None, said.append, places_timeout_s=0.5)
    finally:
        added.kill()
    assert is_healthy(well), finding_table(well)
    assert "2 workers sum 47 MB" in finding_table(well)
    assert "written and read by each node (2)" in finding_table(well)
    assert list((tmp_path / "runs").glob(".doctor*")) == []
    assert [finding.check for finding in ill if finding.verdict == Verdict.FAIL] == ["labels", "workers"]
    assert any("waiting for 64 CPUs" in line for line in said)
    assert "does not answer within 0.001 s" in finding_table(silent)
