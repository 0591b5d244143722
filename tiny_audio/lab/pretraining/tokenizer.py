"""The tokenizer of the embedded decoder: byte-level BPE of 1,024 pieces with SmolLM3's special tokens and chat format."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1024
PAD_TOKEN = "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", PAD_TOKEN, "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# Splits off words with the space before them, numbers, punctuation and line breaks, as Llama 3's pattern does.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"

# Renders chats without tools as SmolLM3-3B's own template does. Flags in the system message switch thinking on or off and
# drop the metadata; without thinking, an empty think block opens the answer.
CHAT_TEMPLATE = """\
{%- set first = messages[0].content if messages and messages[0].role == "system" else "" -%}
{%- set thinking = enable_thinking if enable_thinking is defined else true -%}
{%- if "/no_think" in first -%}{%- set thinking = false -%}{%- elif "/think" in first -%}{%- set thinking = true -%}{%- endif -%}
{%- set custom = first.replace("/no_think", "").replace("/think", "").rstrip() -%}
{{- "<|im_start|>system\\n" -}}
{%- if "/system_override" in custom -%}
{{- custom.replace("/system_override", "").rstrip() -}}
{%- else -%}
{{- "## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\nToday Date: " ~ strftime_now("%d %B %Y") -}}
{{- "\\nReasoning Mode: " ~ ("/think" if thinking else "/no_think") ~ "\\n\\n## Custom Instructions\\n\\n" -}}
{{- (custom or "You are a helpful AI assistant named SmolLM.") ~ "\\n\\n" -}}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- set empty_think = "" if thinking else "<think>\\n\\n</think>\\n" -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{{- "<|im_start|>user\\n" ~ message.content ~ "<|im_end|>\\n" -}}
{%- elif message.role == "assistant" -%}
{{- "<|im_start|>assistant\\n" ~ empty_think ~ message.content.lstrip("\\n") ~ "<|im_end|>\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" ~ empty_think -}}{%- endif -%}
"""


def build_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Trains a tokenizer whose pieces are frequent in `sentences`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|im_end|>",
        pad_token=PAD_TOKEN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
