"""Which nodes train and which decode, and what a cluster lacks for both."""

import re

import pytest

from tiny_audio.config import TrainConfig
from tiny_audio.ray_names import NODE_GROUP, SUBCLUSTER
from tiny_audio.training.places import Offer, can_grow, find_lacks, missing_decode_nodes, worker_selector

DECODES = {SUBCLUSTER: "decode"}


def node(cpus=0, gpus=0, labels=None):
    return Offer("host", labels or {}, {"CPU": cpus, "GPU": gpus})


HEAD, DECODE, TRAIN, GPUS = node(), node(cpus=4, labels=DECODES), node(cpus=2.5), node(cpus=0, gpus=2)


@pytest.mark.parametrize(
    ("nodes", "changes", "said"),
    [
        ([HEAD, DECODE, TRAIN], {}, []),
        ([HEAD, DECODE, TRAIN], {"num_workers": 3}, ["3 workers each want a CPU, and there is room for 2 off the decode nodes"]),
        ([HEAD, DECODE, TRAIN], {"num_workers": 3, "min_workers": 2}, []),
        ([HEAD, TRAIN], {}, ["no node has the label ray-subcluster=decode and a CPU, and data are decoded there alone"]),
        ([HEAD], {}, ["2 workers each want a CPU, and there is room for 0 off", "no node has the label"]),
        ([node(cpus=2)], {"label": None}, ["2 of 2 CPUs are for workers, and decode tasks need one too"]),
        ([node(cpus=3)], {"label": None}, []),
        ([DECODE, GPUS], {"use_gpu": True}, []),
        ([DECODE, GPUS], {"use_gpu": True, "num_workers": 3}, ["3 workers each want a GPU, and there is room for 2"]),
        ([GPUS], {"use_gpu": True, "label": None}, ["0 of 0 CPUs are for workers, and decode tasks need one too"]),
        ([DECODE, node(gpus=2, labels={SUBCLUSTER: "train"})], {"use_gpu": True}, []),
        ([DECODE, node(gpus=2, labels={SUBCLUSTER: "train"})], {"use_gpu": True, "min_workers": 1}, ["1 worker wants a GPU"]),
    ],
)
def test_what_a_cluster_lacks_is_said(nodes, changes, said):
    values = {"use_gpu": False, "num_workers": 2, "label": "decode", **changes}
    label = values.pop("label")
    config = TrainConfig(**values)
    config.data.decode_label = label
    lacks = find_lacks(nodes, config)
    assert len(lacks) == len(said)
    assert all(lack.detail.startswith(start) and lack.remedy for lack, start in zip(lacks, said, strict=True)), lacks


def test_only_nodes_of_a_launcher_may_be_followed_by_more():
    assert not can_grow([HEAD, DECODE])
    assert can_grow([HEAD, node(labels={NODE_GROUP: "headgroup"})])


def test_workers_keep_off_the_decode_nodes():
    config = TrainConfig()
    assert worker_selector(config) is None
    config.data.decode_label = "decode"
    assert worker_selector(config) == {SUBCLUSTER: "!decode"}


def test_missing_decode_nodes_are_named_with_the_remedy(local_ray):
    said = missing_decode_nodes("decode")  # other tests' nodes may be gone from this Ray
    assert re.match(
        r"no node with the label ray-subcluster=decode is up( \(gone: .+\))?, and data are decoded there alone; start", said
    )
    assert "ray start --labels=ray-subcluster=decode" in said
