"""The house: imports point one way, and what must stay in one place does.

The directions themselves are import-linter's contracts in pyproject.toml. They are run here, and the rest is held here.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

from tests.conftest import DECODER, ENCODER, ROOT

LIBRARY = sorted((ROOT / "tiny_audio").rglob("*.py"))
ALL = [*LIBRARY, *sorted((ROOT / "ray_jobs").rglob("*.py"))]
LONGEST_CHAIN = 9
LAB_JOBS = {"benchmark", "chaos", "load_test", "pretrain_backbones", "quickstart", "seeds", "synthesize"}


@pytest.fixture(scope="module")
def graph():
    graph = grimp.build_graph("tiny_audio", "ray_jobs", cache_dir=None, include_external_packages=True)
    for part in graph.find_children("tiny_audio.lab.benchmarks.parts"):  # the job imports them by their names
        graph.add_import(importer="ray_jobs.benchmark", imported=part)
    return graph


def importers(graph, name: str) -> set[str]:
    """The modules of ours that import a module or package, at their top or within a function."""
    return set(graph.find_modules_that_directly_import(name)) if name in graph.modules else set()


def test_the_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", ROOT / "pyproject.toml"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_no_chain_of_imports_is_long(graph):
    """A reader who goes down from a job meets few floors."""
    floors: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in floors:
            below = [name for name in graph.find_modules_directly_imported_by(module) if name.split(".")[0] in OURS]
            floors[module] = 1 + max(map(floor, below), default=0)
        return floors[module]

    OURS = ("tiny_audio", "ray_jobs")
    highest = max((module for module in graph.modules if module.split(".")[0] in OURS), key=floor)
    assert floors[highest] <= LONGEST_CHAIN, f"{highest} stands on floor {floors[highest]}"


def test_the_root_of_the_library_is_a_hall_and_no_store_room():
    assert len(list((ROOT / "tiny_audio").glob("*.py"))) <= 8


def test_one_file_builds_the_training_stream_and_one_the_pool():
    builders = {str(path.relative_to(ROOT)) for path in ALL if "map_batches(" in path.read_text()}
    assert builders == {f"tiny_audio/{name}.py" for name in ("data/stream", "inference/pool", "inference/files")}


def test_one_file_imports_deepspeed_and_the_gpl_synthesiser_has_one_door(graph):
    assert importers(graph, "deepspeed") == {"tiny_audio.training.zero"}
    assert importers(graph, "espeakng_loader") == {"tiny_audio.lab.synthetic.speech"}


def test_nothing_happens_at_import():
    """Modules define; only `if __name__ == "__main__"` does."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for path in ALL:
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or isinstance(node, allowed), f"{path}:{node.lineno} does something at import"


def test_files_and_functions_stay_small():
    for path in ALL:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, f"{path} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name} is too long"


def test_nothing_unsafe_is_loaded():
    for path in ALL:
        text = path.read_text()
        for unsafe in ("trust_remote_code", "pickle", "torch.load("):
            assert unsafe not in text, f"{path} uses {unsafe}"


def test_drivers_import_no_models():
    """They check configs, tokenizers and weight files; transformers' models and torch's compiler would take 3 s and 150 MB."""
    drivers = "tiny_audio.training.driver, tiny_audio.evaluation.evaluate, tiny_audio.inference.files"
    checks = "encoder.require_encoder(sys.argv[1]); decoder.require_decoder(sys.argv[2])"
    loaded = "print({'transformers.modeling_utils', 'torch._dynamo'} & set(sys.modules))"
    code = f"import sys, {drivers}; from tiny_audio.model import decoder, encoder; {checks}; {loaded}"
    run = subprocess.run([sys.executable, "-c", code, ENCODER, DECODER], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


def test_only_the_jobs_of_the_lab_name_it():
    """No string, no template and no manifest of the product names a module or a file of `lab/`."""
    kinds = (".py", ".yaml", ".yml", ".json", ".jinja", ".sh")
    files = [path for name in ("tiny_audio", "ray_jobs", "serve", "cluster") for path in (ROOT / name).rglob("*")]
    of_the_lab = {ROOT / f"ray_jobs/{job}.py" for job in LAB_JOBS} | set((ROOT / "tiny_audio/lab").rglob("*"))
    product = [path for path in files if path.suffix in kinds and path not in of_the_lab]
    assert len(product) > 60
    assert not [str(path) for path in product if re.search(r"tiny_audio[./]lab\b", path.read_text())]


def test_every_module_imports():
    """Those too that no other test runs, such as the pre-training of the embedded backbones."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in ALL]
    code = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_product_works_without_the_lab(tmp_path):
    """Its modules, its jobs and its service import with `lab/` and the lab's own jobs deleted."""
    for name in ("tiny_audio", "ray_jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("lab", "__pycache__"))
    for job in LAB_JOBS:
        (tmp_path / f"ray_jobs/{job}.py").unlink()
    modules = [".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in sorted(tmp_path.rglob("*.py"))]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = f"import importlib, tiny_audio; [importlib.import_module(name) for name in {modules!r}]; print(tiny_audio.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().startswith(str(tmp_path))


def test_the_wheel_holds_every_package_and_its_data(tmp_path):
    """An editable install would hide what is missing."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tiny_audio", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    files = {path.relative_to(ROOT) for path in (ROOT / "tiny_audio").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    missing = sorted(str(path) for path in files if not (tmp_path / "site" / path).is_file() and path.name != "README.md")
    assert not missing
    (entry,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert "tiny-audio = tiny_audio.cli.main:main" in entry.read_text()
    code = f"""
import random, sys, tiny_audio
from tiny_audio.cli.main import main
from tiny_audio.lab.synthetic.dataset import encode_audio
from tiny_audio.lab.synthetic.speech import held_out_voices, synthesize
model = tiny_audio.ASRModel(tiny_audio.ASRConfig(audio_model_id={ENCODER!r}, text_model_id={DECODER!r}, max_new_tokens=4))
model.save_pretrained("model")
pcm = synthesize("the old baker", held_out_voices()[0], random.Random(0))
open("clip.wav", "wb").write(encode_audio(pcm, "wav"))
print(tiny_audio.__file__)
sys.exit(main(["transcribe", "clip.wav", "--model", "model", "--format", "json"]))
"""
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=True)
    where, line = run.stdout.strip().splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert json.loads(line)["duration_s"] > 0.5
