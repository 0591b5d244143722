"""The manifests in cluster/ fit KubeRay's and Ray's schemas, strictly, and keep their promises: isolation, versions, secrets.

Nothing here needs a cluster, and nothing starts Ray.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
import ray.autoscaler
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from serve.app import Arguments, build
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = CLUSTER / "ray_up.yaml"
TRAIN_JOB = CLUSTER / "kuberay" / "train_job.yaml"
SERVE_SERVICE = CLUSTER / "kuberay" / "serve_service.yaml"
SHARED_VOLUME = CLUSTER / "kuberay" / "shared_volume.yaml"
CRDS = {"RayJob": "rayjobs", "RayService": "rayservices"}  # kind -> file in tests/cluster/kuberay
GIB = {"Gi": 1, "Ti": 1024}


def strict(schema):
    """Turns a CRD's schema into one that refuses unknown fields, which the API server would silently prune."""
    strict_schema = {key: value for key, value in schema.items() if key != "format" and not key.startswith("x-kubernetes-")}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict_schema[key] = strict(schema[key])
    if "properties" in schema:
        strict_schema["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        strict_schema["additionalProperties"] = False
    return strict_schema


def errors_of(manifest):
    """Lists why KubeRay's CRD would refuse the manifest, one line per reason."""
    assert manifest["apiVersion"] == "ray.io/v1"
    packed = ROOT / "tests" / "cluster" / "kuberay" / f"{CRDS[manifest['kind']]}.json.gz"
    validator = Draft202012Validator(strict(json.loads(gzip.decompress(packed.read_bytes()))))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]


def load(path):
    return yaml.safe_load(path.read_text())


def cluster_of(manifest):
    """Returns the RayCluster inside a RayJob or a RayService."""
    return manifest["spec"]["rayClusterSpec" if manifest["kind"] == "RayJob" else "rayClusterConfig"]


def groups_of(manifest):
    """Returns the head and worker groups by name."""
    cluster = cluster_of(manifest)
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def pods_of(manifest):
    """Lists the specs of all pods that the manifest describes."""
    templates = [group["template"] for group in groups_of(manifest).values()]
    if "submitterPodTemplate" in manifest["spec"]:
        templates.append(manifest["spec"]["submitterPodTemplate"])
    return [template["spec"] for template in templates]


def gpus_of(group):
    (container,) = group["template"]["spec"]["containers"]
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def in_gib(quantity):
    return int(quantity[:-2]) * GIB[quantity[-2:]]


def values_of(node, key):
    """Yields every value under `key`, at any depth."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if name == key:
            yield child
        yield from values_of(child, key)


kuberay_manifests = pytest.mark.parametrize("path", [TRAIN_JOB, SERVE_SERVICE], ids=lambda path: path.stem)


# ---- schemas


@kuberay_manifests
def test_manifests_fit_kuberay(path):
    assert errors_of(load(path)) == []


def test_an_unknown_field_is_refused_at_any_depth():
    manifest = load(TRAIN_JOB)
    for where in (manifest["spec"], groups_of(manifest)["decode"], pods_of(manifest)[1]["containers"][0]):
        where["idleTimeoutSecond"] = 1
        assert errors_of(manifest), f"accepted in {sorted(where)}"
        del where["idleTimeoutSecond"]
    assert errors_of(manifest) == []


def test_a_wrong_type_a_wrong_quantity_and_a_missing_field_are_refused():
    wrong_type, wrong_quantity, missing = load(SERVE_SERVICE), load(SERVE_SERVICE), load(SERVE_SERVICE)
    groups_of(wrong_type)["transcriber"]["maxReplicas"] = "4"
    pods_of(wrong_quantity)[0]["containers"][0]["resources"]["limits"]["memory"] = "8GiB"
    del cluster_of(missing)["workerGroupSpecs"][0]["groupName"]
    assert [len(errors_of(manifest)) for manifest in (wrong_type, wrong_quantity, missing)] == [1, 1, 1]


def test_train_job_keeps_the_rules_that_the_operator_checks():
    """KubeRay checks these rules in code, not in the CRD."""
    spec = load(TRAIN_JOB)["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert "deletionStrategy" not in spec, "mutually exclusive with shutdownAfterJobFinishes"
    assert spec["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"
    for group in groups_of(load(TRAIN_JOB)).values():
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never", "the autoscaler v2 wants it"
        assert "labels" not in group["rayStartParams"], "labels belong to the group"


def test_ray_up_fits_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(load(RAY_UP))] == []
    assert list(validator.iter_errors(load(RAY_UP) | {"max_worker": 1})), "the schema must bite"


# ---- what runs where


@kuberay_manifests
def test_head_takes_no_tasks(path):
    assert groups_of(load(path))["head"]["rayStartParams"]["num-cpus"] == "0"


def test_decode_stays_off_the_gpus():
    groups = groups_of(load(TRAIN_JOB))
    assert {name for name, group in groups.items() if gpus_of(group)} == {"h100"}
    assert {name for name, group in groups.items() if "ray-subcluster" in group.get("labels", {})} == {"decode"}
    assert groups["h100"]["minReplicas"] == 0


def test_ray_up_keeps_decode_off_the_gpus():
    types = load(RAY_UP)["available_node_types"]
    assert {name for name, node in types.items() if "ray-subcluster" in node.get("labels", {})} == {"cpu-decode"}
    assert {name for name, node in types.items() if node["node_config"]["InstanceType"].startswith("p")} == {"h100"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["h100"]["min_workers"] == 0


def test_entrypoint_is_a_config_that_fits_the_groups(tmp_path):
    spec = load(TRAIN_JOB)["spec"]
    python, dash_m, module, config, *overrides = spec["entrypoint"].split()
    assert (python, dash_m, module) == ("python", "-m", "ray_jobs.train")
    (tmp_path / "empty.yaml").touch()
    train = load_config(TrainConfig, tmp_path / "empty.yaml", overrides)
    groups = groups_of(load(TRAIN_JOB))
    assert train.data.decode_label == groups["decode"]["labels"]["ray-subcluster"]
    assert train.num_workers == gpus_of(groups["h100"]) * groups["h100"]["maxReplicas"]
    assert load(RAY_UP)["available_node_types"]["cpu-decode"]["labels"]["ray-subcluster"] == train.data.decode_label
    # The service loads the model that the run exports.
    (application,) = yaml.safe_load(load(SERVE_SERVICE)["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["model"] == f"{train.runs_dir}/{Path(config).stem}/model"
    for pod in pods_of(load(TRAIN_JOB))[:-1]:  # all but the submitter
        assert {"name": "shared", "mountPath": "/mnt/shared"} in pod["containers"][0]["volumeMounts"]


@kuberay_manifests
def test_shared_memory_holds_the_object_store(path):
    """Ray gives 30 % of a pod's memory to the object store; if /dev/shm is smaller, it moves the store to disk."""
    for pod in pods_of(load(path)):
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod.get("volumes", []) if volume["name"] == "shm"]
        memory_gib = in_gib(pod["containers"][0]["resources"]["limits"]["memory"])
        assert all(0.3 * memory_gib <= in_gib(size) <= 0.5 * memory_gib for size in sizes)


def test_serve_config_fits_ray_serve():
    config = yaml.safe_load(load(SERVE_SERVICE)["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    # Ray ignores unknown keys; here they are an error.
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = config["applications"]
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    assert application["import_path"] == "serve.app:build"
    for deployment in application["deployments"]:
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()
        assert deployment["ray_actor_options"].keys() <= RayActorOptionsSchema.model_fields.keys()


def test_serve_config_fits_the_app_and_the_groups(tmp_path):
    (config,) = yaml.safe_load(load(SERVE_SERVICE)["spec"]["serveConfigV2"])["applications"]
    # Builds the app as Serve does, except for the model's folder, which must exist.
    (tmp_path / "config.json").write_text("{}")
    ingress = build(Arguments(**config["args"] | {"model": str(tmp_path)}))._bound_deployment
    transcriber = ingress.init_args[0]._bound_deployment
    assert (ingress.name, transcriber.name) == ("Ingress", "Transcriber")
    (override,) = config["deployments"]
    assert override["name"] == "Ingress"

    groups = groups_of(load(SERVE_SERVICE))
    assert override["ray_actor_options"]["label_selector"] == groups["ingress"]["labels"]
    assert gpus_of(groups["ingress"]) == 0
    assert transcriber.ray_actor_options["num_gpus"] == gpus_of(groups["transcriber"]) == 1
    scaling = transcriber._deployment_config.autoscaling_config
    assert scaling.min_replicas == groups["transcriber"]["minReplicas"] == 1
    assert scaling.max_replicas == groups["transcriber"]["maxReplicas"] == 4


# ---- one image, one Ray


def test_ray_version_is_the_same_everywhere():
    pins = [ROOT / name for name in ("pyproject.toml", "constraints.txt") if (ROOT / name).exists()]
    versions = [re.search(r"\bray(?:\[[\w,-]+\])?==([\d.]+)", path.read_text())[1] for path in pins]
    versions += re.findall(r"^FROM rayproject/ray:([\d.]+)-py311-gpu$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    versions += [cluster_of(load(path))["rayVersion"] for path in (TRAIN_JOB, SERVE_SERVICE)]
    versions += re.findall(r'"ray\[default\]==([\d.]+)"', (CLUSTER / "README.md").read_text())
    assert len(versions) == len(pins) + 4
    assert set(versions) == {ray.__version__}


def test_every_node_runs_the_same_image():
    images = list(values_of([load(TRAIN_JOB), load(SERVE_SERVICE), load(RAY_UP)], "image"))
    assert len(images) == 8
    assert set(images) == {"tiny-audio:0.1.0"}
    assert images[0] in (CLUSTER / "README.md").read_text()


def test_image_holds_what_it_copies_and_is_not_root():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]}
    allowed = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000"


# ---- safety


@kuberay_manifests
def test_pods_have_no_privileges(path):
    for pod in pods_of(load(path)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for options in values_of(load(path), "autoscalerOptions"):
        assert options["securityContext"]["allowPrivilegeEscalation"] is False


@kuberay_manifests
def test_nothing_is_open_to_the_world(path):
    assert list(values_of(load(path), "serviceType")) == ["ClusterIP"]
    assert not [*values_of(load(path), "enableIngress"), *values_of(load(path), "serveService")]
    assert cluster_of(load(path))["authOptions"] == {"mode": "token"}


def test_ray_up_opens_nothing_to_the_world():
    config = load(RAY_UP)
    assert "0.0.0.0" not in RAY_UP.read_text()
    # Without a security group of the user's own, Ray creates one that allows SSH from everywhere.
    assert all(node["node_config"]["SecurityGroupIds"] for node in config["available_node_types"].values())
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_no_file_holds_a_secret():
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not re.search(r"hf_\w{20}|AKIA\w{16}|-----BEGIN|Bearer \w{8}|RAY_AUTH_TOKEN=\w", path.read_text()), path
    for variables in values_of([load(TRAIN_JOB), load(SERVE_SERVICE)], "env"):
        for variable in variables:
            assert not re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]) or "value" not in variable
            if variable["name"] == "HF_TOKEN":
                assert variable["valueFrom"]["secretKeyRef"]["optional"] is True


def test_pods_mount_the_shared_volume():
    volume = load(SHARED_VOLUME)
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert set(values_of([load(TRAIN_JOB), load(SERVE_SERVICE)], "claimName")) == {volume["metadata"]["name"]}
