"""The operations that MFU counts are those that torch counts in the model's own forward and backward passes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.model.flops import FlopCounter, peak_flops
from tiny_audio.model.packing import pack

TEXTS = ["the old baker carried seven lemons past a quiet river", "seven lemons"]
CLIPS = [Clip(str(i), tone(1.0), TEXTS[i % 2]) for i in range(16)]  # so many that the head they share does not tell


def counted(compute) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # other kernels' attention is not counted
        compute()
    return counter.get_total_flops()


def test_needed_operations_are_those_of_the_model(model, monkeypatch):
    monkeypatch.setattr(model.config, "encoder_window", "trimmed")  # in the full window, attention has a kernel of its own
    batch, counter = pack(CLIPS, model.packing()), FlopCounter(model)
    encoded = model.encode_batch(batch)
    known = pack(CLIPS, model.packing(), dict(enumerate(encoded.split(batch.num_frames))))
    encoding = counter.of_batch(batch) - counter.of_batch(known)
    assert encoding == pytest.approx(counted(lambda: model.encode_batch(batch)), rel=0.08)  # which makes the log-mels too
    # torch also computes the head, and the half of the decoder's attention that is masked, and then drops it
    assert counter.of_batch(known) == pytest.approx(counted(lambda: model(known).loss_sum.backward()), rel=0.08)


def test_devices_are_known_by_name(monkeypatch):
    for name, tflops in {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA L40S": 362, "NVIDIA L4": 121}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == tflops * 1e12
    assert peak_flops(torch.device("cpu")) is None
