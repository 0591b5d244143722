"""The house: imports point one way, and what must stay in one place does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DECODER, ENCODER, ROOT

LIBRARY = sorted((ROOT / "tiny_audio").glob("*.py"))
ALL = [*LIBRARY, *sorted((ROOT / "ray_jobs").glob("*.py")), *sorted((ROOT / "serve").glob("*.py"))]
KNOW_NOTHING_OF_RAY = (
    *("config", "config_files", "decode", "features", "text"),
    *("dataset_files", "plan", "loquacious", "labels", "shards", "augment", "batch"),
    *("asr_config", "asr_modeling", "backbone", "random_backbones", "tensors", "masks", "layers", "fp8", "budget"),
    *("feature_cache", "parts", "rejects", "ledger", "non_finite", "interval", "storage", "checkpoint", "plan_file", "claim"),
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def importers(prefix: str) -> set[str]:
    return {path.stem for path in ALL if any(name == prefix or name.startswith(prefix + ".") for name in imports(path))}


def test_the_library_imports_neither_jobs_nor_serving():
    assert not [path.name for path in LIBRARY for name in imports(path) if name.split(".")[0] in ("ray_jobs", "serve", "tests")]


def test_one_file_imports_deepspeed_and_one_builds_the_data_graph():
    assert importers("deepspeed") == {"zero"}
    builders = {path.stem for path in ALL if "map_batches(" in path.read_text()}
    assert builders == {"stream"}


@pytest.mark.parametrize("name", KNOW_NOTHING_OF_RAY)
def test_the_early_stages_know_nothing_of_ray(name):
    assert not [found for found in imports(ROOT / f"tiny_audio/{name}.py") if found.split(".")[0] == "ray"]


def test_the_gpl_synthesiser_stays_in_the_data_jobs():
    assert importers("espeakng_loader") == {"speech"}
    assert importers("tiny_audio.speech") == {"prepare", "pretrain_encoder"}
    assert importers("tiny_audio.prepare") | importers("tiny_audio.pretrain_encoder") == {
        "prepare",
        "pretrain_backbones",
        "quickstart",
    }


def test_nothing_happens_at_import():
    """Modules define; only `if __name__ == "__main__"` does."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for path in ALL:
        for node in ast.parse(path.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or isinstance(node, allowed), f"{path.name}:{node.lineno} does something at import"


def test_files_and_functions_stay_small():
    for path in ALL:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, f"{path.name} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path.name}: {node.name} is too long"


def test_nothing_unsafe_is_loaded():
    for path in ALL:
        text = path.read_text()
        for unsafe in ("trust_remote_code", "pickle", "torch.load("):
            assert unsafe not in text, f"{path.name} uses {unsafe}"


def test_drivers_import_no_models():
    """They check configs, tokenizers and weight files; transformers' models would take 2 s and 150 MB more."""
    drivers = "tiny_audio.train, tiny_audio.evaluate, tiny_audio.transcribe_files"
    checks = "backbone.require_encoder(sys.argv[1]); backbone.require_decoder(sys.argv[2])"
    found = "print('transformers.modeling_utils' in sys.modules)"
    code = f"import sys, {drivers}; from tiny_audio import backbone; {checks}; {found}"
    run = subprocess.run([sys.executable, "-c", code, ENCODER, DECODER], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
