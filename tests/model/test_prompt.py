import datetime

from tiny_audio.model.prompt import build_prompt, label_ids, render_chat

RENDERED = (
    "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nTranscribe: <audio><|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\nthe old baker<|im_end|>\n"
)


def test_the_chat_is_the_seeds_byte_for_byte(model):
    assert render_chat(model.tokenizer, model.family.system_prompt, "the old baker") == RENDERED
    assert str(datetime.date.today().year) not in render_chat(model.tokenizer, model.family.system_prompt)


def test_without_the_override_the_template_says_the_date(model):
    """As SmolLM3's does: it is what `/system_override` is there to prevent."""
    chat = model.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert str(datetime.date.today().year) in chat


def test_prompt_and_labels_are_the_whole_chats_tokens(model):
    tokenizer = model.tokenizer
    prompt = build_prompt(tokenizer, model.family.system_prompt)
    (labels,) = label_ids(tokenizer, prompt, [" the old  baker "])
    whole = tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    audio = tokenizer.convert_tokens_to_ids("<audio>")
    assert [*prompt.prefix, audio, *prompt.suffix, *labels] == whole
    assert tokenizer.decode(labels) == "the old baker<|im_end|>\n"


def test_an_empty_label_is_the_end_of_turn(model):
    (labels,) = label_ids(model.tokenizer, model.prompt, [""])
    assert model.tokenizer.decode(labels) == "<|im_end|>\n"
