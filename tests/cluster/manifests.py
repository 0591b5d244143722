"""The manifests as `kubectl apply -k` would send them, and what the tests ask of them."""

import copy
import gzip
import json
import re
from functools import cache
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = ROOT / "tests" / "cluster"
RAY_UP = CLUSTER / "ray_up.yaml"
SHARED_VOLUME = KUBERAY / "shared_volume.yaml"
TRAININGS = ("train", "train_one_gpu", "train_cpu")
SERVICES = ("serve", "serve_cpu")
CRDS = {  # kind -> its schema below tests/cluster
    "RayJob": "kuberay/rayjobs",
    "RayService": "kuberay/rayservices",
    "PodMonitor": "prometheus_operator/podmonitors",
    "PrometheusRule": "prometheus_operator/prometheusrules",
}
GIB = {"Mi": 1 / 1024, "Gi": 1, "Ti": 1024}


def load(path):
    return yaml.safe_load(path.read_text())


def _step(node, key):
    return node[int(key)] if isinstance(node, list) else node[key]


def _patched(manifest, operations):
    """By the operations of JSON Patch (RFC 6902) that the overlays use."""
    for operation in operations:
        *parents, last = operation["path"].strip("/").split("/")
        node = manifest
        for key in parents:
            node = _step(node, key)
        last = int(last) if isinstance(node, list) else last
        if operation["op"] == "remove":
            del node[last]
            continue
        value = operation.get("value")
        if operation["op"] == "copy":
            value = manifest
            for key in operation["from"].strip("/").split("/"):
                value = _step(value, key)
        else:
            assert operation["op"] == "replace"
            assert node[last] is not None
        node[last] = copy.deepcopy(value)
    return manifest


def _with_images(node, images):
    """With the images' new names, in every list of containers."""
    if isinstance(node, list):
        return [_with_images(item, images) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_images(value, images) for key, value in node.items()}
    name, _, _ = str(node.get("image")).partition(":")
    if name in images:
        node["image"] = f"{images[name]['newName']}:{images[name]['newTag']}"
    return node


@cache
def _rendered(folder):
    path = KUBERAY / folder
    kustomization = load(path / "kustomization.yaml")
    assert kustomization.keys() <= {"resources", "images", "patches"}
    manifests = []
    for name in kustomization["resources"]:
        file = path / name
        manifests += _rendered(file.resolve().name) if file.is_dir() else yaml.safe_load_all(file.read_text())
    manifests = copy.deepcopy(manifests)  # anchors make parts of a manifest one object
    manifests = [json.loads(json.dumps(manifest)) for manifest in manifests]
    for patch in kustomization.get("patches", []):
        assert patch["target"].keys() == {"kind"}
        for manifest in manifests:
            if manifest["kind"] == patch["target"]["kind"]:
                _patched(manifest, yaml.safe_load(patch["patch"]))
    images = {image["name"]: image for image in kustomization.get("images", [])}
    return [_with_images(manifest, images) for manifest in manifests]


def rendered(folder):
    """All manifests of a folder in cluster/kuberay, as kustomize makes them."""
    return copy.deepcopy(_rendered(folder))


def ray_of(folder):
    """The RayJob or RayService of a folder."""
    (manifest,) = [manifest for manifest in rendered(folder) if manifest["kind"] in CRDS]
    return manifest


def of_kind(folder, kind):
    return [manifest for manifest in rendered(folder) if manifest["kind"] == kind]


def strict(schema):
    """A schema that refuses what the API server would silently prune: fields that it does not know."""
    strict_schema = {key: value for key, value in schema.items() if key != "format" and not key.startswith("x-kubernetes-")}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict_schema[key] = strict(schema[key])
    if "properties" in schema:
        strict_schema["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        strict_schema["additionalProperties"] = False
    return strict_schema


@cache
def _validator(kind):
    if kind in CRDS:
        packed = SCHEMAS / f"{CRDS[kind]}.json.gz"
        return Draft202012Validator(strict(json.loads(gzip.decompress(packed.read_bytes()))))
    core = json.loads(gzip.decompress((SCHEMAS / "kubernetes" / "schemas.json.gz").read_bytes()))
    definitions = {name: strict(definition) for name, definition in core["$defs"].items()}
    return Draft202012Validator({**strict(core["kinds"][kind]), "$defs": definitions})


def errors_of(manifest):
    """Why Kubernetes would not take the manifest, one line each; empty where it would."""
    return [f"{error.json_path}: {error.message[:200]}" for error in _validator(manifest["kind"]).iter_errors(manifest)]


def cluster_of(manifest):
    """The RayCluster within a RayJob or a RayService."""
    return manifest["spec"]["rayClusterSpec" if manifest["kind"] == "RayJob" else "rayClusterConfig"]


def groups_of(manifest):
    """Head and worker groups by name."""
    cluster = cluster_of(manifest)
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def templates_of(manifest):
    """Every pod template that the manifest writes out, Ray's nodes first."""
    templates = [group["template"] for group in groups_of(manifest).values()]
    submitter = manifest["spec"].get("submitterPodTemplate")
    return [*templates, submitter] if submitter else templates


def pods_of(manifest):
    return [template["spec"] for template in templates_of(manifest)]


def containers_of(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def gpus_of(group):
    (container,) = group["template"]["spec"]["containers"]
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def in_gib(quantity):
    return int(quantity[:-2]) * GIB[quantity[-2:]]


def in_cpus(quantity):
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def values_of(node, key):
    """Every value under `key`, at any depth."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if name == key:
            yield child
        yield from values_of(child, key)


def entrypoint_of(folder):
    """(module, config, overrides) of a training's command."""
    python, dash_m, module, config, *overrides = re.split(r"\s+", ray_of(folder)["spec"]["entrypoint"].strip())
    assert (python, dash_m) == ("python", "-m")
    return module, config, overrides
