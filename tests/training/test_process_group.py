"""What a worker's process is given before its libraries begin."""

import os
import subprocess
import sys

import pytest
import torch

from tiny_audio.training.process_group import keep_memory_whole

ON_A_GPU = """
import torch
from tiny_audio.training.process_group import keep_memory_whole

keep_memory_whole()  # after the import, as on a worker, but before the GPU is asked for anything
kept = [torch.empty(num_bytes, dtype=torch.uint8, device="cuda") for num_bytes in (2**20, 2**28)]
assert all(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
"""


def test_settings_of_the_environment_stay(monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:256")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    keep_memory_whole()
    kept = {name: text for name, text in os.environ.items() if name.startswith(("PYTORCH_ALLOC", "ONEDNN_PRIMITIVE"))}
    assert kept == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_grows_in_place():
    environment = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    subprocess.run([sys.executable, "-c", ON_A_GPU], env=environment, check=True)
