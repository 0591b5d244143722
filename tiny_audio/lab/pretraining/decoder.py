"""Pre-trains the embedded decoder on text alone: it learns to restore a stretched, misspelled sentence in the prompt's chat."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, IterableDataset
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from tiny_audio.lab.pretraining.config import PretrainConfig
from tiny_audio.lab.pretraining.recipe import one_cycle, save_backbone, update
from tiny_audio.lab.pretraining.tokenizer import build_tokenizer
from tiny_audio.lab.synthetic.sentences import CHARACTERS, Grammar, unique_sentences
from tiny_audio.model.decoders.smollm3 import SMOLLM3
from tiny_audio.model.prompt import build_prompt


class NoisyChats(IterableDataset):
    """Yields (input ids, label ids) without end: the prompt, a stretched and misspelled sentence, the sentence."""

    BLANK = "_"

    def __init__(self, config: PretrainConfig, tokenizer):
        self.seed, self.tokenizer = config.seed, tokenizer
        self.prompt = build_prompt(tokenizer, SMOLLM3.system_prompt)
        self.end = tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
        self.character_ids = {c: tokenizer.convert_tokens_to_ids("Ġ" if c == " " else c) for c in CHARACTERS + self.BLANK}

    def stretch(self, text: str, noise: float, rng: random.Random) -> list[int]:
        """Writes a sentence as characters of speech, 25 a second: repeated, with blanks between, some wrong, some missing."""
        positions = max(1.2, rng.gauss(1.9, 0.35))  # per character: our speech has about 14 characters a second
        stretched: list[str] = [self.BLANK] * rng.randint(0, 5)
        for character in text:
            draw = rng.random()
            if draw < 0.35 * noise:
                continue  # the character is missing
            if draw < noise:
                character = rng.choice(CHARACTERS)
            length = max(1, round(rng.expovariate(1.0) * (positions - 1) + 0.5))
            blanks = sum(rng.random() < 0.35 for _ in range(length - 1))
            stretched += [character] * (length - blanks) + [self.BLANK] * blanks
        stretched += [self.BLANK] * rng.randint(0, 8)
        return [self.character_ids[c] for c in stretched]

    def example(self, grammar: Grammar, rng: random.Random) -> tuple[list[int], list[int]]:
        """Draws one pair; some are silence without an answer, some plain text without a prompt."""
        draw = rng.random()
        if draw < 0.03:
            content, answer = [self.character_ids[self.BLANK]] * rng.randint(1, 150), []
        else:
            text = grammar.salad() if draw < 0.23 else grammar.sentence()
            invents = rng.random() < 0.35  # such words can be read but not guessed, so they are spelled well
            text = grammar.with_invented(text, 0.35) if invents else text
            content = self.stretch(text, rng.choice([0.0, 0.0, 0.03] if invents else [0.0, 0.06, 0.13]), rng)
            if draw > 0.98:  # plain text keeps it a language model
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                return ids, ids
            answer = self.pieces(text, rng)
        before = self.prompt.prefix + content + self.prompt.suffix
        after = answer + self.end
        return before + after, [-100] * len(before) + after

    def pieces(self, text: str, rng: random.Random) -> list[int]:
        """Splits a sentence into the tokenizer's pieces; now and then spells some words out, as a coarse BPE dropout."""
        if rng.random() < 0.6:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids: list[int] = []
        for number, word in enumerate(text.split()):
            spaced = (" " if number else "") + word
            if rng.random() < 0.25:
                ids += [self.character_ids[c] for c in spaced]
            else:
                ids += self.tokenizer(spaced, add_special_tokens=False)["input_ids"]
        return ids

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1_000_003 + (worker.id if worker else 0))
        grammar = Grammar(rng)
        while True:
            yield self.example(grammar, rng)


def _collate(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = -(-max(len(ids) for ids, _ in rows) // 32) * 32
    fill = lambda ids, value: pad(torch.tensor(ids), (0, width - len(ids)), value=value)  # noqa: E731
    return torch.stack([fill(ids, 0) for ids, _ in rows]), torch.stack([fill(labels, -100) for _, labels in rows])


def pretrain_decoder(config: PretrainConfig) -> dict:
    """Trains the decoder, saves it beside its tokenizer, and returns the figures of the training.

    The tokenizer's pieces come from the same text.
    """
    torch.manual_seed(config.seed)
    device, started = torch.device(config.device), time.perf_counter()
    folder = Path(config.output_dir) / "decoder"
    tokenizer = build_tokenizer(unique_sentences(20_000, config.seed))
    tokenizer.save_pretrained(folder)
    model_config = SmolLM3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    decoder = SmolLM3ForCausalLM(model_config).to(device).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), config.learning_rate, weight_decay=0.01)
    schedule = one_cycle(optimizer, config.decoder_steps)
    workers = max(1, config.num_processes - 2)
    loader = DataLoader(
        NoisyChats(config, tokenizer), config.decoder_batch, collate_fn=_collate, num_workers=workers, prefetch_factor=4
    )
    for step, (ids, labels) in zip(range(1, config.decoder_steps + 1), loader, strict=False):
        ids, labels = ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = decoder(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        update(loss, list(decoder.parameters()), optimizer, schedule)
        if step % 250 == 0 or step == 1:
            print(f"decoder: step {step} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    state = {k: v.half().contiguous().cpu() for k, v in decoder.state_dict().items() if k != "lm_head.weight"}
    save_backbone(folder, decoder.config, state)
    return {
        "steps": config.decoder_steps,
        "sentences": config.decoder_steps * config.decoder_batch,
        "loss": loss.item(),
        "seconds": time.perf_counter() - started,
    }
