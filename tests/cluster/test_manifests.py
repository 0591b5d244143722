"""cluster/: the manifests fit KubeRay's, Kubernetes' and Ray's schemas, strictly, and keep what they promise.

Nothing here needs a cluster, and nothing starts Ray.
"""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import ray.autoscaler
import yaml
from jsonschema import Draft7Validator
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from tests.cluster.manifests import (
    CLUSTER,
    KUBERAY,
    RAY_UP,
    ROOT,
    SERVICES,
    SHARED_VOLUME,
    TRAININGS,
    cluster_of,
    containers_of,
    entrypoint_of,
    errors_of,
    gpus_of,
    groups_of,
    in_cpus,
    in_gib,
    load,
    of_kind,
    pods_of,
    ray_of,
    rendered,
    templates_of,
    values_of,
)
from tiny_audio.config import TrainConfig
from tiny_audio.config_files import load_config
from tiny_audio.serving.app import build
from tiny_audio.serving.arguments import MIDDLEWARES

each_folder = pytest.mark.parametrize("folder", [*TRAININGS, *SERVICES])
each_training = pytest.mark.parametrize("folder", TRAININGS)
each_service = pytest.mark.parametrize("folder", SERVICES)

# (CPUs, GiB, GPUs) of the machines that comments name for a group, the smallest of them
MACHINES = {
    "train": {"head": (8, 32, 0), "decode": (16, 64, 0), "train": (192, 1872, 8)},
    "train_one_gpu": {"head": (8, 32, 0), "train": (16, 64, 1)},
    "train_cpu": {"head": (8, 32, 0), "cpu": (16, 64, 0)},
    "serve": {"head": (4, 16, 0), "ingress": (4, 16, 0), "transcriber": (8, 32, 1)},
    "serve_cpu": {"head": (4, 16, 0), "ingress": (4, 16, 0), "transcriber": (8, 32, 0)},
}
DAEMONS = (0.3, 0.75)  # CPUs and GiB of what runs on every node: network, volumes, metrics, logs
AUTOSCALER = (0.5, 0.5)  # KubeRay's own container beside the head


# ---- schemas


@each_folder
def test_manifests_fit_kubernetes_and_kuberay(folder):
    for manifest in rendered(folder):
        assert errors_of(manifest) == [], f"{manifest['kind']} {manifest['metadata']['name']}"
    assert errors_of(load(SHARED_VOLUME)) == []


@each_folder
@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
def test_kustomize_makes_the_same(folder):
    run = subprocess.run(["kubectl", "kustomize", KUBERAY / folder], capture_output=True, text=True, check=True)
    theirs = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in yaml.safe_load_all(run.stdout)}
    assert theirs == {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in rendered(folder)}


def test_an_unknown_field_is_refused_at_any_depth():
    manifest = ray_of("train")
    for where in (manifest["spec"], groups_of(manifest)["decode"], pods_of(manifest)[1]["containers"][0]):
        where["idleTimeoutSecond"] = 1
        assert errors_of(manifest), f"accepted in {sorted(where)}"
        del where["idleTimeoutSecond"]
    assert errors_of(manifest) == []


def test_unknown_fields_of_core_kinds_are_refused_too():
    (budget,), policies, (redis,) = (
        of_kind("train", "PodDisruptionBudget"),
        of_kind("serve", "NetworkPolicy"),
        of_kind("serve", "StatefulSet"),
    )
    budget["spec"]["minAvailabel"] = 1
    policies[0]["spec"]["ingress"][0]["form"] = []
    redis["spec"]["template"]["spec"]["containers"][0]["image_"] = "redis"
    assert [len(errors_of(manifest)) for manifest in (budget, policies[0], redis)] == [1, 1, 1]


def test_a_wrong_type_a_wrong_quantity_and_a_missing_field_are_refused():
    wrong_type, wrong_quantity, missing = ray_of("serve"), ray_of("serve"), ray_of("serve")
    groups_of(wrong_type)["transcriber"]["maxReplicas"] = "4"
    pods_of(wrong_quantity)[0]["containers"][0]["resources"]["limits"]["memory"] = "8GiB"
    del cluster_of(missing)["workerGroupSpecs"][0]["groupName"]
    assert [len(errors_of(manifest)) for manifest in (wrong_type, wrong_quantity, missing)] == [1, 1, 1]


@each_folder
def test_manifests_keep_the_rules_that_the_operator_adds(folder):
    """KubeRay 1.7.0 checks these in code (controllers/ray/utils/validation.go), not in the CRD."""
    manifest = ray_of(folder)
    assert "deletionStrategy" not in manifest["spec"], "mutually exclusive with shutdownAfterJobFinishes"
    assert "networkPolicy" not in cluster_of(manifest), "behind a feature gate that is off"
    assert cluster_of(manifest)["autoscalerOptions"]["version"] == "v2"
    for group in groups_of(manifest).values():
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never", "the autoscaler v2 wants it"
        assert "labels" not in group["rayStartParams"], "labels belong to the group"
        names = [variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]]
        assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & set(names), "gcsFaultToleranceOptions sets them"


def test_ray_up_fits_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(load(RAY_UP))] == []
    assert list(validator.iter_errors(load(RAY_UP) | {"max_worker": 1})), "the schema must bite"


# ---- what runs where


@each_folder
def test_head_takes_no_tasks(folder):
    assert groups_of(ray_of(folder))["head"]["rayStartParams"]["num-cpus"] == "0"


@each_training
def test_decode_stays_off_the_gpus(folder):
    groups = groups_of(ray_of(folder))
    labelled = {name for name, group in groups.items() if "ray-subcluster" in group.get("labels", {})}
    assert labelled == ({"decode"} if folder == "train" else set())
    assert {name for name, group in groups.items() if gpus_of(group)} == ({"train"} & groups.keys())
    assert all(group["minReplicas"] == 0 for group in groups.values() if gpus_of(group))


def test_ray_up_keeps_decode_off_the_gpus():
    types = load(RAY_UP)["available_node_types"]
    assert {name for name, node in types.items() if "ray-subcluster" in node.get("labels", {})} == {"cpu-decode"}
    assert {name for name, node in types.items() if node["node_config"]["InstanceType"].startswith("p")} == {"h100"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["h100"]["min_workers"] == 0


@each_training
def test_entrypoint_is_a_config_that_fits_the_groups(folder):
    module, config, overrides = entrypoint_of(folder)
    assert module == "ray_jobs.train"
    train = load_config(TrainConfig, ROOT / config, overrides)
    groups = groups_of(ray_of(folder))
    assert train.data.decode_label == groups.get("decode", {}).get("labels", {}).get("ray-subcluster")
    workers = groups.get("train") or groups["cpu"]
    assert train.use_gpu == bool(gpus_of(workers))
    slots = gpus_of(workers) or in_cpus(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) - 1
    assert train.num_workers <= slots * workers["maxReplicas"]
    assert not train.use_gpu or train.num_workers == slots * workers["maxReplicas"]
    for pod in pods_of(ray_of(folder))[:-1]:  # all but the submitter
        assert {"name": "shared", "mountPath": "/mnt/shared"} in pod["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(("service", "training"), [("serve", "train"), ("serve_cpu", "train_cpu")])
def test_the_service_reads_what_the_run_wrote(service, training):
    _, config, overrides = entrypoint_of(training)
    train = load_config(TrainConfig, ROOT / config, overrides)
    (application,) = yaml.safe_load(ray_of(service)["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["model"] == f"{train.runs_dir}/{train.name}/model"


# ---- what fits where


def allocatable(cpus, memory_gib):
    """(CPUs, GiB) of a machine that pods get on GKE, which keeps more than EKS and AKS do: its published steps."""
    steps = [(4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (float("inf"), 0.02)]
    kept, left = 0.1, memory_gib
    for size, share in steps:
        kept += min(size, left) * share
        left -= min(size, left)
    cpu_kept = 0.06 + 0.01 * (cpus > 1) + 0.005 * min(2, max(0, cpus - 2)) + 0.0025 * max(0, cpus - 4)
    return cpus - cpu_kept, memory_gib - kept


@each_folder
def test_requests_fit_the_machines_that_comments_name(folder):
    for name, group in groups_of(ray_of(folder)).items():
        cpus, memory_gib, gpus = MACHINES[folder][name]
        free_cpus, free_gib = allocatable(cpus, memory_gib)
        requests = [container["resources"]["requests"] for container in containers_of(group["template"]["spec"])]
        beside = [part + (extra if name == "head" else 0) for part, extra in zip(DAEMONS, AUTOSCALER, strict=True)]
        assert sum(in_cpus(request["cpu"]) for request in requests) + beside[0] <= free_cpus, name
        assert sum(in_gib(request["memory"]) for request in requests) + beside[1] <= free_gib, name
        assert gpus_of(group) <= gpus


@each_folder
def test_gpu_groups_scale_from_zero(folder):
    """A node's instance type is known before there is such a node; labels of NVIDIA's operator are not."""
    for group in groups_of(ray_of(folder)).values():
        pod = group["template"]["spec"]
        assert set(pod.get("nodeSelector", {})) == ({"node.kubernetes.io/instance-type"} if gpus_of(group) else set())
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert tolerated == ({"nvidia.com/gpu"} if gpus_of(group) else set())


@each_folder
def test_shared_memory_holds_the_object_store(folder):
    """Ray gives 30 % of a pod's memory to the object store; with a smaller /dev/shm it would move to the disk."""
    for pod in pods_of(ray_of(folder)):
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod.get("volumes", []) if volume["name"] == "shm"]
        memory_gib = in_gib(pod["containers"][0]["resources"]["limits"]["memory"])
        assert all(0.3 * memory_gib <= in_gib(size) <= 0.5 * memory_gib for size in sizes)


@each_folder
def test_disk_is_asked_for(folder):
    for pod in pods_of(ray_of(folder)):
        for container in containers_of(pod):
            resources = container["resources"]
            assert in_gib(resources["requests"]["ephemeral-storage"]) <= in_gib(resources["limits"]["ephemeral-storage"])
        for volume in pod.get("volumes", []):
            if "sizeLimit" in volume.get("emptyDir", {}) and volume["emptyDir"].get("medium") != "Memory":
                asked = in_gib(pod["containers"][0]["resources"]["requests"]["ephemeral-storage"])
                assert in_gib(volume["emptyDir"]["sizeLimit"]) <= asked


# ---- what ends pods, and what stays


@each_folder
def test_pods_end_in_order(folder):
    """`preStop` stops Ray within the pod's grace; requests under way end first."""
    for name, group in groups_of(ray_of(folder)).items():
        pod = group["template"]["spec"]
        command = " ".join(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
        waits_s = sum(map(int, re.findall(r"(?:sleep|--grace-period) (\d+)", command)))
        assert waits_s < pod["terminationGracePeriodSeconds"]
        if name in ("ingress", "transcriber"):
            config = yaml.safe_load(ray_of(folder)["spec"]["serveConfigV2"])
            assert int(re.search(r"sleep (\d+)", command)[1]) > config["http_options"]["request_timeout_s"]


@each_folder
def test_autoscalers_leave_head_and_gpus_alone(folder):
    for name, group in groups_of(ray_of(folder)).items():
        annotations = group["template"]["metadata"].get("annotations", {})
        if name not in ("decode", "cpu"):
            assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
            assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def selects(selector, labels):
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def kuberay_labels(folder):
    """The labels of a folder's pods by group, with those that KubeRay adds."""
    groups = groups_of(ray_of(folder))
    kinds = {name: "headgroup" if name == "head" else name for name in groups}
    return {name: group["template"]["metadata"]["labels"] | {"ray.io/group": kinds[name]} for name, group in groups.items()}


def test_budgets_keep_the_head_and_all_gpu_pods_of_a_training():
    (budget,) = of_kind("train", "PodDisruptionBudget")
    chosen = {name for name, labels in kuberay_labels("train").items() if selects(budget["spec"]["selector"], labels)}
    assert chosen == {"head", "train"}
    assert budget["spec"]["minAvailable"] == 1 + groups_of(ray_of("train"))["train"]["maxReplicas"]


def test_budgets_keep_a_pod_of_each_kind_that_serves():
    chosen = [
        name
        for budget in of_kind("serve", "PodDisruptionBudget")
        for name, labels in kuberay_labels("serve").items()
        if selects(budget["spec"]["selector"], labels) and budget["spec"]["minAvailable"] == 1
    ]
    assert chosen == ["ingress", "transcriber"]


@each_folder
def test_policies_let_in_the_pods_themselves_and_the_operator(folder):
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(folder, "NetworkPolicy")}
    (policy,) = [spec for name, spec in policies.items() if not name.endswith("redis")]
    for template in templates_of(ray_of(folder)):  # the submitter too
        assert selects(policy["podSelector"], template["metadata"]["labels"])
        assert selects(policy["ingress"][0]["from"][0]["podSelector"], template["metadata"]["labels"])
        assert "ports" not in policy["ingress"][0], "Ray, Gloo and NCCL take ports of the system's choice"
    operator = {"app.kubernetes.io/name": "kuberay-operator"}  # as its Helm chart labels it
    (rule,) = [rule for rule in policy["ingress"] if rule["from"][0].get("podSelector", {}).get("matchLabels") == operator]
    assert {"port": 8265} in rule["ports"]


@each_folder
def test_logs_outlive_the_cluster(folder):
    for group in groups_of(ray_of(folder)).values():
        pod = group["template"]["spec"]
        (sidecar,) = pod["initContainers"]
        assert sidecar["restartPolicy"] == "Always"
        assert sidecar["volumeMounts"] == [
            {"name": "shared", "mountPath": "/mnt/shared"},
            {"name": "ray-logs", "mountPath": "/tmp/ray"},
        ]


def test_the_sidecar_copies_what_grows_and_the_last_lines(tmp_path):
    script = pods_of(ray_of("train"))[0]["initContainers"][0]["args"][0]
    logs = tmp_path / "ray/session_latest/logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("first\n")
    script = (
        script.replace("/mnt/shared", str(tmp_path)).replace("/tmp/ray", str(tmp_path / "ray")).replace("sleep 60", "sleep 0.2")
    )
    environment = {"CLUSTER": "c", "POD": "p", "PATH": "/usr/bin:/bin"}
    copied = tmp_path / "logs/c/p/raylet.out"
    with subprocess.Popen(["bash", "-c", script], env=environment) as sidecar:
        for _ in range(100):
            time.sleep(0.1)
            if copied.is_file():
                break
        assert copied.read_text() == "first\n"
        with (logs / "raylet.out").open("a") as log:
            log.write("last\n")
        sidecar.terminate()
    assert copied.read_text() == "first\nlast\n"


@each_service
def test_the_head_may_be_lost(folder):
    options = cluster_of(ray_of(folder))["gcsFaultToleranceOptions"]
    (redis,), services = of_kind(folder, "StatefulSet"), of_kind(folder, "Service")
    assert options["redisAddress"] == f"{services[0]['metadata']['name']}:{services[0]['spec']['ports'][0]['port']}"
    pod = redis["spec"]["template"]
    assert selects({"matchLabels": services[0]["spec"]["selector"]}, pod["metadata"]["labels"])
    (container,) = pod["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (policy,) = [policy for policy in of_kind(folder, "NetworkPolicy") if policy["metadata"]["name"] == "tiny-audio-redis"]
    assert selects(policy["spec"]["podSelector"], pod["metadata"]["labels"])
    assert selects(policy["spec"]["ingress"][0]["from"][0]["podSelector"], kuberay_labels(folder)["head"])


def test_a_training_retries_and_gives_up():
    spec = ray_of("train")["spec"]
    assert spec["backoffLimit"] == 1
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"] == 86400
    assert spec["shutdownAfterJobFinishes"]


# ---- serving


@each_service
def test_serve_config_fits_ray_serve(folder):
    config = yaml.safe_load(ray_of(folder)["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    # Ray ignores a key that it does not know; here it is an error.
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    assert MIDDLEWARES in config["controller_options"]["runtime_env"]["env_vars"].values()
    (application,) = config["applications"]
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    assert application["import_path"] == "tiny_audio.serving.app:build"
    for deployment in application["deployments"]:
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()
        assert deployment["ray_actor_options"].keys() <= RayActorOptionsSchema.model_fields.keys()


@each_service
def test_serve_config_fits_the_app_and_the_groups(folder, tmp_path):
    (config,) = yaml.safe_load(ray_of(folder)["spec"]["serveConfigV2"])["applications"]
    # The app as Serve builds it, but for the model's folder, which must exist.
    (tmp_path / "config.json").write_text("{}")
    ingress = build(config["args"] | {"model": str(tmp_path)})._bound_deployment
    transcriber = ingress.init_args[0]._bound_deployment
    assert (ingress.name, transcriber.name) == ("Ingress", "Transcriber")
    (override,) = config["deployments"]
    assert override["name"] == "Ingress"

    groups = groups_of(ray_of(folder))
    assert override["ray_actor_options"]["label_selector"] == groups["ingress"]["labels"]
    assert override["num_replicas"] == groups["ingress"]["minReplicas"] == 2
    assert override["max_replicas_per_node"] == 1
    assert gpus_of(groups["ingress"]) == 0
    assert transcriber.ray_actor_options.get("num_gpus", 0) == gpus_of(groups["transcriber"]) == int(folder == "serve")
    cpus = in_cpus(groups["transcriber"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert transcriber.ray_actor_options.get("num_cpus", 1) <= cpus
    scaling = transcriber._deployment_config.autoscaling_config
    assert scaling.min_replicas == groups["transcriber"]["minReplicas"] == 1
    assert scaling.max_replicas == groups["transcriber"]["maxReplicas"] == 4


# ---- one Ray, two images


def test_ray_version_is_the_same_everywhere():
    pins = [ROOT / "pyproject.toml", ROOT / "constraints.txt", CLUSTER / "requirements" / "run.txt"]
    versions = [re.search(r"\bray(?:\[[\w,-]+\])?==([\d.]+)", path.read_text())[1] for path in pins]
    versions += re.findall(
        r"^ARG RAY_IMAGE=rayproject/ray:([\d.]+)-py311-cpu$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE
    )
    versions += [cluster_of(ray_of(folder))["rayVersion"] for folder in (*TRAININGS, *SERVICES)]
    versions += re.findall(r'"ray\[default\]==([\d.]+)"', (CLUSTER / "README.md").read_text())
    assert len(versions) == len(pins) + 7
    assert set(versions) == {ray.__version__}


@each_folder
def test_gpu_pods_run_the_gpu_image_and_the_others_the_cpu_image(folder):
    registry = "registry.example.com/"
    for group in groups_of(ray_of(folder)).values():
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == registry + ("tiny-audio:0.1.0" if gpus_of(group) else "tiny-audio-cpu:0.1.0")
    assert load(RAY_UP)["docker"]["image"] == "tiny-audio:0.1.0"


# ---- safety


@each_folder
def test_pods_have_no_rights(folder):
    for pod in pods_of(ray_of(folder)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["imagePullSecrets"] == [{"name": "tiny-audio-registry"}]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in containers_of(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for options in values_of(ray_of(folder), "autoscalerOptions"):
        assert options["securityContext"]["allowPrivilegeEscalation"] is False


@each_folder
def test_nothing_is_open_to_the_world(folder):
    assert list(values_of(ray_of(folder), "serviceType")) == ["ClusterIP"]
    assert not [*values_of(ray_of(folder), "enableIngress"), *values_of(ray_of(folder), "serveService")]
    assert {service["spec"].get("type", "ClusterIP") for service in of_kind(folder, "Service")} <= {"ClusterIP"}
    assert cluster_of(ray_of(folder))["authOptions"] == {"mode": "token"}


def test_ray_up_opens_nothing_to_the_world():
    config = load(RAY_UP)
    assert "0.0.0.0" not in RAY_UP.read_text()
    # Without a group of the user's, Ray creates one that lets in SSH from everywhere.
    assert all(node["node_config"]["SecurityGroupIds"] for node in config["available_node_types"].values())
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_no_file_holds_a_secret():
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not re.search(r"hf_\w{20}|AKIA\w{16}|-----BEGIN|Bearer \w{8}|RAY_AUTH_TOKEN=\w", path.read_text()), path
    for variables in values_of([rendered("train"), rendered("serve")], "env"):
        for variable in variables:
            assert not re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]) or "value" not in variable
            if variable["name"] == "HF_TOKEN":
                assert variable["valueFrom"]["secretKeyRef"]["optional"] is True


def test_shared_volume_is_the_one_that_pods_mount():
    volume = load(SHARED_VOLUME)
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    manifests = [ray_of(folder) for folder in (*TRAININGS, *SERVICES)]
    assert set(values_of(manifests, "claimName")) == {volume["metadata"]["name"]}
