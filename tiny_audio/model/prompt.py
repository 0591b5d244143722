"""Builds the prompt, the labels and the text of a transcript, for training, evaluation and serving alike.

The chat, as the seed renders it with SmolLM3's template (`/system_override` keeps today's date out of it):
system `/no_think /system_override`; user `Transcribe: ` + audio; assistant the transcript.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_PROMPT = "/no_think /system_override"
USER_PROMPT = "Transcribe: "
AUDIO_TOKEN = "<audio>"  # stands for the audio in the rendered chat; it never reaches the decoder
END_OF_TURN = "<|im_end|>"
PAD_TOKEN = "<|finetune_right_pad_id|>"
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Prompt:
    """The token ids around the audio: the decoder reads `prefix`, audio tokens, `suffix`, then the answer and its `ending`."""

    prefix: list[int]
    suffix: list[int]
    ending: str


def render_chat(tokenizer, text: str | None = None) -> str:
    """Renders the chat as a string, with one `<audio>` for the audio: as far as the answer, or with it if `text` is given."""
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": USER_PROMPT + AUDIO_TOKEN},
    ]
    if text is not None:
        messages.append({"role": "assistant", "content": text})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=text is None)


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def build_prompt(tokenizer) -> Prompt:
    """Finds the token ids before and after the audio, up to and including the empty think block, and what ends an answer.

    Raises:
        ValueError: the tokenizer's chat template does not render the audio placeholder exactly once, or renders
            another prompt where there is an answer.
    """
    prompt, probe = render_chat(tokenizer), "transcript"
    parts = prompt.split(AUDIO_TOKEN)
    if len(parts) != 2:
        raise ValueError(f"the chat template renders {len(parts) - 1} audio placeholders, expected 1")
    answered = render_chat(tokenizer, probe)
    if not answered.startswith(prompt + probe):
        raise ValueError("the chat template renders a prompt that is no prefix of the answered chat")
    return Prompt(_ids(tokenizer, parts[0]), _ids(tokenizer, parts[1]), answered.removeprefix(prompt + probe))


def clean_transcript(text: str) -> str:
    """Returns a label as it is trained and scored: with single spaces, and none at the ends."""
    return " ".join(text.split())


def label_ids(tokenizer, prompt: Prompt, texts: list[str]) -> list[list[int]]:
    """Returns what the decoder must answer: the transcript, `<|im_end|>` and a line break. The loss is on these alone."""
    return _ids(tokenizer, [clean_transcript(text) + prompt.ending for text in texts])
