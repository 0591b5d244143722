"""Pre-trains the embedded encoder with CTC over the characters of synthetic speech, all of it in the device's memory."""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import nn
from torch.nn.functional import ctc_loss
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from tiny_audio.audio.clip import HOP_SAMPLES, SAMPLE_RATE, SAMPLES_PER_ENCODER_FRAME
from tiny_audio.audio.features import log_mel
from tiny_audio.lab.pretraining.config import PretrainConfig
from tiny_audio.lab.pretraining.recipe import WINDOW_S, one_cycle, save_backbone, update
from tiny_audio.lab.synthetic.sentences import CHARACTERS, Grammar
from tiny_audio.lab.synthetic.speech import synthesize, training_voices
from tiny_audio.model.layers import encoder_layers, stem

WIDTH_STEP = 2 * SAMPLES_PER_ENCODER_FRAME  # of the widths that are drawn, in samples


def _speak(job: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Synthesises a chunk of (text, waveform) pairs, a few of them silence without text. A job is (seed, number of pairs)."""
    seed, count = job
    rng = random.Random(seed)
    grammar, voices, pairs = Grammar(rng), training_voices(), []
    for _ in range(count):
        if rng.random() < 0.02:
            pairs.append(("", np.zeros(rng.randint(SAMPLE_RATE // 4, 4 * SAMPLE_RATE), np.int16)))
            continue
        text = grammar.sentence()
        if rng.random() < 0.2:
            text = grammar.with_invented(text, 0.3)
        waveform = synthesize(text, rng.choice(voices), rng)
        if len(waveform) <= WINDOW_S * SAMPLE_RATE:
            pairs.append((text, waveform))
    return pairs


class Utterances:
    """All speech, as one flat int16 tensor in the device's memory. Batches are drawn from buckets of similar lengths."""

    def __init__(self, config: PretrainConfig, device: torch.device):
        chunk = 500
        jobs = [(config.seed * 1_000_003 + i, chunk) for i in range(config.num_utterances // chunk)]
        with ProcessPoolExecutor(config.num_processes, mp_context=get_context("spawn")) as pool:
            pairs = [pair for chunk_pairs in pool.map(_speak, jobs) for pair in chunk_pairs]
        pairs.sort(key=lambda pair: len(pair[1]))
        self.texts = [text for text, _ in pairs]
        self.lengths = torch.tensor([len(wave) for _, wave in pairs], device=device)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.samples = torch.from_numpy(np.concatenate([wave for _, wave in pairs])).to(device)
        self.hours = len(self.samples) / SAMPLE_RATE / 3600

    def batch(self, size: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Draws (B, S) float waveforms, padded to a random length up to the window, with their (B,) lengths and texts."""
        bucket = 8 * size
        first = rng.randrange(max(1, len(self.texts) - bucket))
        rows = torch.tensor(rng.sample(range(first, min(first + bucket, len(self.texts))), size), device=self.samples.device)
        speed = rng.uniform(0.92, 1.09) if rng.random() < 0.3 else 1.0  # as of a tape: pitch and formants change too
        lengths = (self.lengths[rows] / speed).long().clamp(max=WINDOW_S * SAMPLE_RATE)
        longest = math.ceil((int(lengths.max()) + WIDTH_STEP) / WIDTH_STEP) * WIDTH_STEP
        window = WINDOW_S * SAMPLE_RATE
        width = window if rng.random() < 0.5 or longest >= window else rng.randrange(longest, window + 1, WIDTH_STEP)
        position = torch.arange(width, device=rows.device)[None]
        place = position * speed
        index = (self.starts[rows][:, None] + place.long()).clamp(max=len(self.samples) - 2)
        between = place - place.long()
        waves = (1 - between) * self.samples[index].float() + between * self.samples[index + 1].float()
        waves = torch.where(position < lengths[:, None], waves / 32768.0, 0.0)
        return waves, lengths, [self.texts[row] for row in rows.tolist()]


def _augment(waves: torch.Tensor) -> torch.Tensor:
    """Adds white noise, 30 to 70 dB below full scale, to half of the clips; turns half of them down."""
    rows = waves.shape[0]
    draw = lambda: torch.rand(rows, 1, device=waves.device)  # noqa: E731
    level = 10 ** (-(1.0 + 2.0 * draw())) * (draw() < 0.5)
    gain = torch.where(draw() < 0.5, 0.2 + 0.8 * draw(), torch.ones_like(level))
    return (waves * gain + 0.3 * level * torch.randn_like(waves)).clamp(-1, 1)


def _mask_mels(mels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Masks one band of up to 12 mels and two spans of up to 8 frames with the mean: a light SpecAugment (Park et al. 2019)."""
    start, width = rng.randrange(116), rng.randint(0, 12)
    mels[:, start : start + width] = mels.mean()
    for _ in range(2):
        start, width = rng.randrange(max(1, mels.shape[-1] - 8)), rng.randint(0, 8)
        mels[:, :, start : start + width] = mels.mean()
    return mels


def pretrain_encoder(config: PretrainConfig) -> dict:
    """Trains the encoder, saves it beside its feature extractor, and returns the figures of the training.

    The weights have the keys of a whole Whisper checkpoint.
    """
    torch.manual_seed(config.seed)
    rng, device, started = random.Random(config.seed), torch.device(config.device), time.perf_counter()
    data = Utterances(config, device)
    print(f"encoder: {data.hours:.1f} h of speech in {time.perf_counter() - started:.0f} s", flush=True)
    whisper = WhisperModel(
        WhisperConfig(
            num_mel_bins=128,
            d_model=192,
            encoder_layers=4,
            encoder_attention_heads=3,
            encoder_ffn_dim=768,
            max_source_positions=WINDOW_S * 50,
            decoder_layers=1,  # the format has a decoder; this one is never used, and is left out of the file
            decoder_attention_heads=3,
            decoder_ffn_dim=8,
            vocab_size=8,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
        )
    )
    encoder = whisper.encoder.to(device).train()
    head = nn.Linear(192, 1 + len(CHARACTERS)).to(device)
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW([w for w in weights if w.requires_grad], config.learning_rate, weight_decay=0.01)
    schedule = one_cycle(optimizer, config.encoder_steps)
    for step in range(1, config.encoder_steps + 1):
        waves, lengths, texts = data.batch(config.encoder_batch, rng)
        mels = _mask_mels(log_mel(_augment(waves), 128), rng)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = head(encoder_layers(encoder, stem(encoder, mels), None))
        targets = torch.tensor([CHARACTERS.index(c) + 1 for text in texts for c in text], device=device)
        frames = torch.div(lengths + 2 * HOP_SAMPLES - 1, 2 * HOP_SAMPLES, rounding_mode="floor")
        target_lengths = torch.tensor([len(text) for text in texts], device=device)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        loss = ctc_loss(log_probs, targets, frames, target_lengths, zero_infinity=True)
        update(loss, weights, optimizer, schedule)
        if step % 250 == 0 or step == 1:
            print(f"encoder: step {step} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    error = _ctc_error(encoder.eval(), head, data, rng)
    folder = Path(config.output_dir) / "encoder"
    state = {f"model.encoder.{k}": v.half().contiguous().cpu() for k, v in encoder.state_dict().items()}
    save_backbone(folder, whisper.config, state)
    WhisperFeatureExtractor(feature_size=128, chunk_length=WINDOW_S).save_pretrained(folder)
    seconds = time.perf_counter() - started
    return {
        "hours": data.hours,
        "utterances": len(data.texts),
        "steps": config.encoder_steps,
        "ctc_character_error": error,
        "seconds": seconds,
    }


@torch.no_grad()
def _ctc_error(encoder: nn.Module, head: nn.Module, data: Utterances, rng: random.Random) -> float:
    """Returns the character error rate of greedy CTC decoding on four training batches: a check, not a result."""
    pairs = []
    for _ in range(4):
        waves, _, texts = data.batch(64, rng)
        best = head(encoder_layers(encoder, stem(encoder, log_mel(waves, 128)), None)).argmax(-1).tolist()
        for ids, text in zip(best, texts, strict=True):
            characters = [i for i, before in zip(ids, [0, *ids[:-1]], strict=True) if i != before and i != 0]
            pairs.append((text, "".join(CHARACTERS[i - 1] for i in characters)))
    spoken = [(text, transcript) for text, transcript in pairs if text]  # silence has no characters to get wrong
    return jiwer.cer([text for text, _ in spoken], [transcript for _, transcript in spoken])
