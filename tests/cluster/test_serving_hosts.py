"""Serving on several hosts: `serve deploy` from a client outside, a host that is lost, and a head that is lost and comes back."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.cluster.hosts import RayHosts, why_no_hosts
from tests.conftest import ROOT, tone
from tiny_audio.lab.local_nodes import wait_for
from tiny_audio.lab.synthetic.dataset import encode_audio

WHY_NOT = why_no_hosts() or ("" if shutil.which("redis-server") and shutil.which("curl") else "redis-server and curl are wanted")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
PATIENCE_S = 300.0
PASSWORD = "secret"  # of Redis, on the hosts' own network
KNOWN_TO_REDIS = {"RAY_REDIS_ADDRESS": "redis:6379"}  # as the head is told by KubeRay
WAITS_FOR_A_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}  # as KubeRay tells the workers of such a head


@pytest.fixture(scope="module")
def hosts(model, tmp_path_factory) -> Iterator[RayHosts]:
    """Starts Redis, a head that keeps what it knows there, two hosts to serve, and a client; deploys serve/cluster.yaml."""
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder / "model")
    (folder / "clip.wav").write_bytes(encode_audio(tone(1.0), "wav"))
    with tempfile.TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True) as files, RayHosts(Path(files)) as hosts:
        redis = ["redis-server", "--protected-mode", "no", "--save", "", "--requirepass", PASSWORD]
        hosts.add("redis").popen(Path(files) / "redis.log", *redis)
        hosts.start_head("head", KNOWN_TO_REDIS, f"--redis-password={PASSWORD}")
        hosts.start({"serve1": "", "serve2": ""}, num_cpus=2, settings=WAITS_FOR_A_HEAD)
        hosts.add("client")
        hosts.served = folder
        deploy(hosts)
        yield hosts


def deploy(hosts: RayHosts, num_replicas: int = 2, **changes) -> None:
    """Deploys the repository's config for clusters, with what its comments say to edit, as a user does on a laptop."""
    config = yaml.safe_load((ROOT / "serve/cluster.yaml").read_text())
    config["controller_options"]["runtime_env"]["env_vars"]["TINY_AUDIO_NUM_PROXIES"] = "2"
    (application,) = config["applications"]
    (ingress,) = application["deployments"]
    ingress["num_replicas"] = num_replicas
    replicas = {"min_replicas": num_replicas, "max_replicas": num_replicas}
    application["args"] |= {"model": str(hosts.served / "model"), "device": "cpu", **replicas, **changes}
    application["args"]["skip_silence"] = False  # its clip is a tone
    path = hosts.served / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    hosts["client"].run("serve", "deploy", "--address", hosts.api, str(path))
    wait_for(lambda: status(hosts) == "RUNNING", f"the service: {status(hosts)}", PATIENCE_S, poll_s=2)


def status(hosts: RayHosts) -> str:
    """What `serve status` says of the application; all of it if that is nothing."""
    said = hosts["client"].run("serve", "status", "--address", hosts.api, check=False)
    found = re.search(r"applications:\n  tiny_audio:\n    status: (\w+)", said)
    return found[1] if found else said


def get(hosts: RayHosts, name: str, path: str, *form: str) -> str:
    """Asks one host from the client, by curl; returns the HTTP status, 000 for none."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "90", *form, f"http://{name}:8000{path}"]
    return subprocess.run(hosts["client"].command(*command), capture_output=True, text=True).stdout


def ask(hosts: RayHosts, name: str) -> str:
    """Asks one host for the transcript of a clip; returns the HTTP status."""
    return get(hosts, name, "/v1/audio/transcriptions", "-F", f"file=@{hosts.served}/clip.wav", "-F", "model=tiny_audio")


def hosts_of(hosts: RayHosts, deployment: str) -> list[str]:
    """The hosts on which a deployment's replicas are, as Ray's state has it."""
    addresses = {row["node_id"]: row["node_ip"] for row in hosts.state("nodes")}
    names = {host.address: host.name for host in hosts.by_name.values()}
    actors = [row for row in hosts.state("actors") if deployment in row["class_name"] and row["state"] == "ALIVE"]
    return sorted(names[addresses[row["node_id"]]] for row in actors)


def test_every_host_with_replicas_answers(hosts):
    for deployment in ("Ingress", "Transcriber"):
        assert hosts_of(hosts, f"ServeReplica:tiny_audio:{deployment}") == ["serve1", "serve2"]
    assert [ask(hosts, name) for name in ("serve1", "serve2")] == ["200", "200"]
    assert [get(hosts, name, "/readyz") for name in ("serve1", "serve2")] == ["200", "200"]


def test_a_deployment_without_the_token_is_refused(hosts):
    stranger = hosts["redis"]
    (stranger.folder / "home/.ray/auth_token").write_text("0" * 32)
    refused = stranger.run("serve", "deploy", "--address", hosts.api, str(hosts.served / "cluster.yaml"), check=False)
    assert "Sent deploy request successfully" not in refused
    assert re.search(r"(?i)token", refused), refused


def test_a_lost_host_costs_no_more_than_the_requests_that_it_had(hosts):
    hosts.remove("serve2")
    answers = []
    wait_for(lambda: answers.append(ask(hosts, "serve1")) or answers[-5:] == ["200"] * 5, "five answers in a row", PATIENCE_S)
    assert set(answers) <= {"200", "503", "504"}, answers
    hosts.start({"serve3": ""}, num_cpus=2, settings=WAITS_FOR_A_HEAD)
    wait_for(lambda: ask(hosts, "serve3") == "200", "an answer of the host that came", PATIENCE_S, poll_s=1)
    wait_for(lambda: status(hosts) == "RUNNING", "both replicas", PATIENCE_S, poll_s=2)


def test_a_head_that_is_lost_is_not_missed_and_comes_back(hosts):
    hosts.remove("head")
    assert [ask(hosts, name) for name in ("serve1", "serve3") * 10] == ["200"] * 20
    hosts.start_head("head", KNOWN_TO_REDIS, f"--redis-password={PASSWORD}")
    wait_for(lambda: status(hosts) == "RUNNING", "the service on the new head", PATIENCE_S, poll_s=2)
    assert ask(hosts, "serve1") == ask(hosts, "serve3") == "200"
    hosts.start({"serve4": ""}, num_cpus=4, settings=WAITS_FOR_A_HEAD)  # in an update the new replicas come beside the old ones
    deploy(hosts, max_queued=65)
    assert ask(hosts, "serve4") == "200"


def test_a_host_without_replicas_drains_and_ends_all_its_proxies(hosts):
    deploy(hosts, num_replicas=1)
    used = {*hosts_of(hosts, "ServeReplica:tiny_audio:Ingress"), *hosts_of(hosts, "ServeReplica:tiny_audio:Transcriber")}
    left = {"serve1", "serve3", "serve4"} - used

    def healths() -> set[str]:
        with ThreadPoolExecutor(8) as pool:  # at once, for they drain at once; several times, for each has two proxies
            return set(pool.map(partial(get, hosts, path="/-/healthz"), [*left] * 8))

    wait_for(lambda: healths() == {"503"}, "all their proxies to drain", PATIENCE_S)
    wait_for(lambda: healths() == {"000"}, "the end of all their proxies", PATIENCE_S)
    assert {ask(hosts, name) for name in used} == {"200"}
