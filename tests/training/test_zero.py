"""The optimizer runs in this process: one worker, gloo, backbones in bfloat16."""

from functools import partial

import pytest
import torch

from tests.conftest import tone
from tiny_audio.audio.clip import Clip
from tiny_audio.config import OptimizerConfig
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.layers import plain_layers
from tiny_audio.model.packing import pack
from tiny_audio.model.whole_layers import call_whole_layers, whole_layers
from tiny_audio.training.zero import MOMENTS, Engine, compile_for_stage_3

RATE = 1e-6  # AdamW's first steps move a weight by about this much; near 0.02, bfloat16 numbers are 1.2e-4 apart


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_updates_too_small_for_bfloat16_are_kept(one_worker, hub_folders, stage):
    torch.manual_seed(0)
    model = ASRModel(ASRConfig(audio_model_id=hub_folders[0], text_model_id=hub_folders[1], dtype="bfloat16"))
    before = {name: weight.detach().clone() for name, weight in model.projector.named_parameters()}
    engine = Engine(model, model.trained_groups(), OptimizerConfig(learning_rate=RATE, weight_decay=0.0), stage=stage)
    batch = pack([Clip("a", tone(1.0), "the old baker")], model.packing())
    for _ in range(3):
        engine.backward(engine(batch).loss_sum, last=True)
        engine.step([RATE])
    after, moments = engine.weights(), engine.moments()
    assert {weight.dtype for weight in model.projector.parameters()} == {torch.float32}
    assert set(moments) == {f"{moment}.{name}" for moment in MOMENTS for name in before}
    for name, weight in before.items():
        assert {after[name].dtype, *(moments[f"{moment}.{name}"].dtype for moment in MOMENTS)} == {torch.float32}
        large = weight.abs() > 2**-6
        rounded = weight[large].bfloat16()
        assert torch.equal(rounded + RATE, rounded)  # in bfloat16 such an update would be lost
        moved = (after[name] - weight).abs()[large]
        assert moved.median() == pytest.approx(3 * RATE, rel=0.2)


@torch._functorch.config.patch(recompute_views=False)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whole_layers_are_gathered_at_stage_3_and_one_compilation_serves_them_all(one_worker, hub_folders, monkeypatch, compiled):
    """With `aot_eager`, which does what compiling does but for the kernels."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # DeepSpeed puts its own there for good
    losses = []
    for stage in (0, 3):
        torch.manual_seed(0)
        model = ASRModel(ASRConfig(audio_model_id=hub_folders[0], text_model_id=hub_folders[1]))
        if stage == 3:
            if compiled:
                compile_for_stage_3()
                model.layers = plain_layers(model.family, partial(torch.compile, dynamic=True, backend="aot_eager"))
            call_whole_layers(model)
        engine = Engine(model, model.trained_groups(), OptimizerConfig(), stage, whole_layers(model), compiled)
        batch = pack([Clip("a", tone(1.0), "the old baker"), Clip("b", tone(0.4, 200), "lemons")], model.packing())
        losses.append([])
        for _ in range(3):
            output = engine(batch)
            engine.backward(output.loss_sum, last=True)
            engine.step([1e-2])
            losses[-1].append(output.loss_sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] < 0.99 * losses[0][0]
    assert {weight.numel() for weight in model.decoder.model.layers.parameters()} == {0}  # shared out again
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (0 < graphs < 8) if compiled else graphs == 0
