"""What only a GPU can show: its kernels, compiled layers and FP8 compute what the CPU does. Skipped elsewhere."""

import pytest
import torch

from tests.conftest import DECODER, ENCODER, tone
from tiny_audio.audio.clip import Clip
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.fp8 import freeze_to_fp8
from tiny_audio.model.layers import attend_slots, attend_slots_each, compiled_layers, flash_attend_slots, likeliest
from tiny_audio.model.packing import pack
from tiny_audio.model.segments import Segments, Slots
from tiny_audio.training.budget import find_micro_batch_s

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CLIPS = [Clip(str(i), tone(0.4 + 0.7 * i, 200 + 90 * i), "seven lemons past a quiet river") for i in range(8)]


def build(device, dtype="bfloat16", window="trimmed"):
    torch.manual_seed(0)
    config = ASRConfig(audio_model_id=ENCODER, text_model_id=DECODER, dtype=dtype, encoder_window=window)
    return ASRModel(config).to(device)


def loss_and_gradient(model):
    output = model(pack(CLIPS, model.packing()).to(model.decoder.device))
    model.zero_grad()
    output.loss.backward()
    return float(output.loss.detach()), torch.cat([weight.grad.flatten().cpu() for weight in model.projector.parameters()])


@pytest.mark.parametrize("window", ["trimmed", "full"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gpu_computes_what_the_cpu_does(window, compiled):
    loss, gradient = loss_and_gradient(build("cpu", "float32", window))
    model = build("cuda", "bfloat16", window)
    if compiled:
        model.layers = compiled_layers(model.family)
    gpu_loss, gpu_gradient = loss_and_gradient(model)
    assert gpu_loss == pytest.approx(loss, rel=0.02)
    assert torch.cosine_similarity(gradient, gpu_gradient, dim=0) > 0.97


def test_fp8_stays_near_bf16():
    model = build("cuda")
    loss, gradient = loss_and_gradient(model)
    freeze_to_fp8(model)
    model.layers = compiled_layers(model.family)
    fp8_loss, fp8_gradient = loss_and_gradient(model)
    assert fp8_loss == pytest.approx(loss, rel=0.05)
    assert torch.cosine_similarity(gradient, fp8_gradient, dim=0) > 0.8


def test_a_budget_is_found_and_is_less_on_a_smaller_gpu():
    model = build("cuda")
    budgets = []
    for share in (0.005, 1.0):
        torch.cuda.set_per_process_memory_fraction(share)
        budgets.append(find_micro_batch_s(model))
    assert 30 <= budgets[0] < budgets[1]


SLOT_LENGTH = 1056


def filled_slots(num_slots: int, num_queries: int):
    """Returns random queries, the keys and values of a cache, the number of keys in each slot, and where slots start."""
    torch.manual_seed(0)
    query = torch.randn(num_queries, 16, 128, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.randn(2, num_slots * SLOT_LENGTH, 4, 128, device="cuda", dtype=torch.bfloat16)
    lengths = torch.randint(1, SLOT_LENGTH + 1, (num_slots,), device="cuda", dtype=torch.int32)
    lengths[:2] = torch.tensor([1, SLOT_LENGTH])
    return query, keys, values, lengths, torch.arange(num_slots + 1, device="cuda", dtype=torch.int32) * SLOT_LENGTH


@pytest.mark.parametrize("num_slots", [2, 9, 256])  # long clips of few slots are split among blocks
def test_flash_attention_to_slots_is_plain_attention_at_each_length(num_slots):
    query, keys, values, lengths, starts = filled_slots(num_slots, num_slots)
    queries = Segments(torch.arange(num_slots + 1, device="cuda", dtype=torch.int32), 1)
    seen = flash_attend_slots(query, keys, values, queries, Slots(starts, lengths, SLOT_LENGTH))
    rows = (x.view(num_slots, SLOT_LENGTH, 4, 128).float() for x in (keys, values))
    torch.testing.assert_close(seen.float(), attend_slots(query.float(), *rows, lengths), atol=0.01, rtol=0.01)


def test_flash_attention_of_prompts_to_slots_in_any_order_is_plain_attention():
    """As prefill does it: each clip has many queries, its last positions, and a slot wherever one was free."""
    query, keys, values, lengths, starts = filled_slots(12, 3000)
    order = torch.tensor([7, 0, 11, 3, 5], device="cuda")
    lengths = lengths[order].clamp(min=20)
    bounds = torch.cat([lengths.new_zeros(1), (lengths - 12).cumsum(0, dtype=torch.int32)])  # the head of 12 has no queries
    queries, slots = Segments(bounds, SLOT_LENGTH), Slots(torch.cat([starts[order], starts[:1]]), lengths, SLOT_LENGTH)
    query = query[: bounds[-1]]
    seen = flash_attend_slots(query, keys, values, queries, slots)
    expected = attend_slots_each(query.float(), keys.float(), values.float(), queries, slots)
    torch.testing.assert_close(seen.float(), expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("num_rows", [2, 64, 512])
def test_the_compiled_choice_of_a_token_and_its_log_probability_are_the_plain_ones(num_rows):
    logits = 5 * torch.randn(num_rows, 128_256, device="cuda", dtype=torch.bfloat16)
    ids, logprobs = torch.compile(likeliest, dynamic=True)(logits)
    expected = torch.log_softmax(logits.float(), dim=-1)
    torch.testing.assert_close(logprobs, expected.amax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(expected.gather(1, ids.long()[:, None])[:, 0], expected.amax(-1))  # of equals, any


@pytest.mark.parametrize("window", ["trimmed", "full"])
def test_the_engine_says_on_a_gpu_what_it_says_on_the_cpu(window):
    """In float32 to the letter; in bfloat16, as graphs, nearly always."""
    clips = [clip.pcm for clip in CLIPS]
    expected = Transcriber(build("cpu", "float32", window), max_new_tokens=24).texts(clips)
    assert Transcriber(build("cuda", "float32", window), max_new_tokens=24, graphs=False).texts(clips) == expected
    engine = Transcriber(build("cuda", "bfloat16", window), max_new_tokens=24)
    together = engine.texts(clips)
    assert sum(text == alone for text, alone in zip(together, expected, strict=True)) >= 0.5 * len(clips)
    assert sum(text == engine.texts([clip])[0] for text, clip in zip(together, clips, strict=True)) >= 0.7 * len(clips)
