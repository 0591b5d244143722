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
    cuda, cpu = (pins((REQUIREMENTS / f"torch_{kind}.txt").read_text()) for kind in ("cuda", "cpu"))
    assert {"torch", "torchaudio", "triton", "nvidia-nccl-cu13", "cuda-bindings"} <= cuda.keys()
    assert all(re.match("torch|triton|nvidia-|cuda-", name) for name in cuda)
    assert not any(re.match("torch|triton|nvidia-|cuda-", name) for name in pins((REQUIREMENTS / "run.txt").read_text()))
    assert cpu == {name: f"{cuda[name]}+cpu" for name in ("torch", "torchaudio")}


def test_requirements_are_the_constraints_with_hashes():
    constraints = pins((ROOT / "constraints.txt").read_text())
    texts = [(REQUIREMENTS / f"{name}.txt").read_text() for name in ("run", "torch_cuda", "dev")]
    locked = [pair for text in texts for pair in pins(text).items()]
    assert len(locked) == len(dict(locked))
    assert dict(locked).items() <= constraints.items(), "run `make lock`"
    assert constraints.keys() - dict(locked).keys() <= {"tzdata"}, "run `make lock`"
    for text in texts:
        entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_nothing_of_the_gpl_synthesiser_is_in_the_image():
    assert "espeakng-loader" not in pins((REQUIREMENTS / "run.txt").read_text())


@pytest.mark.skipif(not HADOLINT, reason="no hadolint; make setup installs it")
def test_hadolint_finds_nothing():
    run = subprocess.run([HADOLINT, CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
