"""Builds the prompt, the labels and the text of a transcript, for training, evaluation and serving alike.

The chat is rendered with the decoder's own template: the system message of its family, if it has one; the user's
`Transcribe: ` + audio; the assistant's transcript. Where a template knows of thinking it opens the answer with an empty
think block, and where it writes today's date it gets a fixed one, so that a prompt is the same on every day.
"""

from __future__ import annotations

from dataclasses import dataclass

USER_PROMPT = "Transcribe: "
AUDIO_TOKEN = "<audio>"  # stands for the audio in the rendered chat; it never reaches the decoder
# Comes before a template, in place of the clock that transformers gives it. The date is Llama 3's, for where there is none.
FIXED_CLOCK = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Prompt:
    """Holds what lies around the audio: the decoder reads `prefix`, audio tokens, `suffix`, then the answer and its `ending`."""

    prefix: list[int]  # token ids
    suffix: list[int]
    opening: str  # the text of `suffix`
    ending: str
    end_id: int  # the token that ends an answer, the first of `ending`
    pad_id: int  # what `generate` fills its rows with


def render_chat(tokenizer, system_prompt: str, text: str | None = None) -> str:
    """Renders the chat as a string, with one `<audio>` for the audio: as far as the answer, or with it if `text` is given."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": USER_PROMPT + AUDIO_TOKEN})
    if text is not None:
        messages.append({"role": "assistant", "content": text})
    template = FIXED_CLOCK + tokenizer.get_chat_template()
    options = {"tokenize": False, "add_generation_prompt": text is None, "enable_thinking": False}
    return tokenizer.apply_chat_template(messages, chat_template=template, **options)


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def build_prompt(tokenizer, system_prompt: str) -> Prompt:
    """Finds the token ids before and after the audio, up to and including an empty think block, and what ends an answer.

    Raises:
        ValueError: the tokenizer's chat template does not render the audio placeholder exactly once, or renders
            another prompt where there is an answer, or ends an answer with no special token.
    """
    prompt, probe = render_chat(tokenizer, system_prompt), "transcript"
    parts = prompt.split(AUDIO_TOKEN)
    if len(parts) != 2:
        raise ValueError(f"the chat template renders {len(parts) - 1} audio placeholders, expected 1")
    answered = render_chat(tokenizer, system_prompt, probe)
    if not answered.startswith(prompt + probe):
        raise ValueError("the chat template renders a prompt that is no prefix of the answered chat")
    ids, ending = _ids(tokenizer, prompt), answered.removeprefix(prompt + probe)
    audio = ids.index(tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
    prefix, suffix = ids[:audio], ids[audio + 1 :]
    end_ids = _ids(tokenizer, ending)
    if not end_ids or end_ids[0] not in tokenizer.added_tokens_decoder:
        raise ValueError(f"the chat template ends an answer with {ending!r}, which begins with no special token")
    if _ids(tokenizer, parts[1] + probe + ending)[: len(suffix)] != suffix:
        raise ValueError("the tokenizer joins the beginning of an answer to the prompt")
    pad_id = end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Prompt(prefix, suffix, parts[1], ending, end_ids[0], pad_id)


def clean_transcript(text: str) -> str:
    """Returns a label as it is trained and scored: with single spaces, and none at the ends."""
    return " ".join(text.split())


def label_ids(tokenizer, prompt: Prompt, texts: list[str]) -> list[list[int]]:
    """Returns what the decoder must answer: the transcript, and the ending of its turn. The loss is on these alone.

    They are the ids that the whole chat has there: to some tokenizers, a word that begins a text is another one.
    """
    chats = _ids(tokenizer, [prompt.opening + clean_transcript(text) + prompt.ending for text in texts])
    return [ids[len(prompt.suffix) :] for ids in chats]
