"""The shipped model of people's speech: what lies in the repository fits the backbones that it names."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import ROOT
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.lora import adapter_weights, attach_adapter
from tiny_audio.model.projectors import make_projector
from tiny_audio.model.saved import load_projector, load_saved_adapter, require_readable

FOLDER = ROOT / "tiny_audio/models/people"
WHISPER_BASE_WIDTH = 512
SMOLLM2_135M = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152
)
MOST_BYTES = 25_000_000  # a clone stays small


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def test_it_fits_its_backbones():
    config = ASRConfig.from_pretrained(FOLDER)
    require_readable(str(FOLDER), config)
    assert (config.audio_model_id, config.text_model_id) == ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
    projector, adapter = load_projector(str(FOLDER)), load_saved_adapter(str(FOLDER))
    with torch.device("meta"):
        decoder = LlamaForCausalLM(SMOLLM2_135M)
        ours = make_projector(config, WHISPER_BASE_WIDTH, SMOLLM2_135M.hidden_size)
        attach_adapter(decoder, adapter.rank, adapter.alpha, adapter.targets)
    assert shapes(projector) == shapes(ours.state_dict())
    assert shapes(adapter.weights) == shapes(adapter_weights(decoder))
    for name, weight in {**projector, **adapter.weights}.items():
        assert weight.isfinite().all(), name
        assert weight.any(), name
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < MOST_BYTES
