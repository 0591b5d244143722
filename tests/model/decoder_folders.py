"""Decoders of every family in the hub's format, with few and random weights and a tokenizer of the family's own kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from transformers import AutoConfig, AutoModelForCausalLM, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

TEXTS = ["the old baker carried seven lemons past a quiet river", "Transcribe: system user assistant", "seven old rivers"] * 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# As the checkpoints' own render a system message, a user's and an assistant's; their tools and tool calls are left out.
CHATML = """\
{%- if messages[0].role != "system" %}{{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}{% endif %}
{%- for message in messages %}{{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}{% endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{% endif %}"""
QWEN3 = """\
{%- for message in messages %}
{%- if message.role == "assistant" %}
{{- "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
{%- else %}{{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{%- endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- set date = date_string if date_string is defined else strftime_now("%d %b %Y") %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: " + date + "\\n\\n" }}
{%- if messages[0].role == "system" %}{{- messages[0].content | trim }}{% endif %}{{- "<|eot_id|>" }}
{%- for message in messages if message.role != "system" %}
{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{% endif %}"""
TINYLLAMA = """\
{% for message in messages %}
{{ "<|" + message.role + "|>\\n" + message.content + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ "<|assistant|>" }}
{% endif %}"""


@dataclass(frozen=True)
class Checkpoint:
    """Describes a checkpoint that people use: its family, what is special in its config, tokenizer and template, its chat."""

    model_type: str
    rendered: str  # the chat with the answer "the old baker"
    template: str
    special_tokens: list[str]
    tokens: dict[str, str]  # the tokenizer's own settings, such as its eos_token
    tokenizer_class: type = PreTrainedTokenizerFast
    split: str | None = LLAMA3_SPLIT
    config: dict = field(default_factory=dict)


IM_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ASKED = "<|im_start|>user\nTranscribe: <audio><|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n"
CHECKPOINTS = {
    "SmolLM2": Checkpoint(
        "llama",
        f"{HELPFUL}{ASKED}the old baker<|im_end|>\n",
        CHATML,
        IM_TOKENS,
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        split=None,
        config={"tie_word_embeddings": True},
    ),
    "Llama 3": Checkpoint(
        "llama",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTranscribe: <audio><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nthe old baker<|eot_id|>",
        LLAMA3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        config={
            "head_dim": 8,  # not the hidden size over the heads
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "TinyLlama": Checkpoint(
        "llama",
        "<|user|>\nTranscribe: <audio></s>\n<|assistant|>\nthe old baker</s>\n",
        TINYLLAMA,
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        tokenizer_class=LlamaTokenizer,
    ),
    "Qwen2.5": Checkpoint(
        "qwen2",
        f"{HELPFUL}{ASKED}the old baker<|im_end|>\n",
        CHATML,
        IM_TOKENS,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        tokenizer_class=Qwen2Tokenizer,
        config={"tie_word_embeddings": True},
    ),
    "Qwen3": Checkpoint(
        "qwen3",
        f"{ASKED}{THOUGHT}the old baker<|im_end|>\n",
        QWEN3,
        IM_TOKENS,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        tokenizer_class=Qwen2Tokenizer,
        config={"head_dim": 24},
    ),
}


def _byte_pairs(split: str | None, special_tokens: list[str]) -> Tokenizer:
    """Trains byte-level BPE with the family's own splitting; without a pattern, GPT-2's, with single digits."""
    tokenizer = Tokenizer(models.BPE())
    first = pre_tokenizers.Split(Regex(split), "isolated") if split else pre_tokenizers.Digits(individual_digits=True)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tokenizer.decoder, tokenizer.normalizer = token_decoders.ByteLevel(), normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, normalized=False, special=True) for token in special_tokens]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _sentence_pieces(special_tokens: list[str]) -> Tokenizer:
    """Trains BPE as Llama 2's: "▁" for spaces, and bytes for what no piece covers."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = [*special_tokens, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False))
    return tokenizer


def _make_tokenizer(checkpoint: Checkpoint):
    if checkpoint.tokenizer_class is LlamaTokenizer:
        trained = _sentence_pieces(checkpoint.special_tokens)
    else:
        trained = _byte_pairs(checkpoint.split, checkpoint.special_tokens)
    if checkpoint.tokenizer_class is PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **checkpoint.tokens)
    else:
        pairs = _pairs_of(trained)
        tokenizer = checkpoint.tokenizer_class(vocab=trained.get_vocab(), merges=pairs, **checkpoint.tokens)
        tokenizer.add_tokens([AddedToken(token, special=True) for token in checkpoint.special_tokens])
    if "<think>" in checkpoint.rendered:
        tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = checkpoint.template
    return tokenizer


def _pairs_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def write_checkpoint(name: str, folder: Path, max_shard_size: str = "5GB") -> Path:
    """Writes the checkpoint of that name; its weights are so large that each part of a layer tells in the loss."""
    checkpoint = CHECKPOINTS[name]
    tokenizer = _make_tokenizer(checkpoint)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"vocab_size": len(tokenizer), **sizes, **heads, **checkpoint.config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(checkpoint.model_type, **settings))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.15, generator=generator)
        else:
            weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
