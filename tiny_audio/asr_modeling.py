"""`ASRModel`: a frozen Whisper encoder and a frozen SmolLM3 decoder, joined by a small trained projector.

Shape letters are those of `features.py`. Nothing here knows of Ray, DeepSpeed or files of audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from transformers import AutoFeatureExtractor, PreTrainedModel
from transformers.utils import cached_file

from tiny_audio.asr_config import ASRConfig
from tiny_audio.backbone import backbone_path, load_decoder, load_encoder, load_tokenizer, read_window_s
from tiny_audio.config import ConfigError
from tiny_audio.features import HOP_SAMPLES, SAMPLES_PER_ENCODER_FRAME, estimated_num_samples, num_audio_tokens
from tiny_audio.text import END_OF_TURN, IGNORED_LABEL, build_prompt

PROJECTOR_FILE = "model.safetensors"
PROJECTOR_PREFIX = "projector."
INIT_STD = 0.02  # the seed's, for every projector weight


class Projector(nn.Module):
    """The seed's `mlp`: 11,730,944 parameters between whisper-large-v3-turbo (C 1280) and SmolLM3-3B (D 2048)."""

    def __init__(self, encoder_width: int, decoder_width: int):
        super().__init__()
        self.conv = nn.Conv1d(encoder_width, encoder_width, kernel_size=3, stride=2, padding=1, bias=False)
        self.linear_1 = nn.Linear(encoder_width, decoder_width, bias=False)
        self.linear_2 = nn.Linear(decoder_width, decoder_width, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """(B, E, C) -> (B, E / 2, D)."""
        hidden = self.conv(encoded.transpose(1, 2)).transpose(1, 2)
        return self.linear_2(gelu(self.linear_1(hidden)))


@dataclass
class ASROutput:
    """Loss of a batch, summed over its label tokens, and their number; `loss` is the mean."""

    loss_sum: torch.Tensor
    num_label_tokens: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        return self.loss_sum / self.num_label_tokens.clamp(min=1)


def read_model_window_s(model: str) -> float:
    """Longest audio that a saved model takes, in seconds, from the configs alone.

    Raises:
        ConfigError: there is no such model, or its encoder is gone.
    """
    try:
        config = ASRConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model}: {str(error).splitlines()[0]}") from None
    return read_window_s(config.audio_model_id)


def save_projector(config: ASRConfig, weights: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Writes a saved model: config.json, and the projector's `weights` in float32."""
    config.architectures = [ASRModel.__name__]
    config.save_pretrained(folder)
    state = {PROJECTOR_PREFIX + name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    save_file(state, Path(folder) / PROJECTOR_FILE, metadata={"format": "pt"})


def encode(encoder: nn.Module, input_features: torch.Tensor) -> torch.Tensor:
    """Whisper's encoder on any even number of frames up to its window; transformers' own takes the full window only.

    (B, M, F) -> (B, F / 2, C). At the full window it equals `WhisperEncoder.forward` (in evaluation mode).
    """
    hidden = gelu(encoder.conv1(input_features.to(encoder.conv1.weight.dtype)))
    hidden = gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
    for layer in encoder.layers:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return encoder.layer_norm(hidden)


class ASRModel(PreTrainedModel):
    """Speech to text. Building one loads both backbones by their ids and makes a fresh projector.

    Only the projector trains and is saved. `tokenizer` and `feature_extractor` are the backbones' own.
    """

    config_class = ASRConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    _supports_sdpa = _supports_flash_attn = True  # as both backbones do

    def __init__(self, config: ASRConfig):
        super().__init__(config)
        dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
        attention = config._attn_implementation or "sdpa"
        self.encoder = load_encoder(config.audio_model_id, dtype, attention).requires_grad_(False)
        self.decoder = load_decoder(config.text_model_id, dtype, attention).requires_grad_(False)
        self.projector = Projector(self.encoder.config.d_model, self.decoder.config.hidden_size)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(backbone_path(config.audio_model_id))
        self.tokenizer = load_tokenizer(config.text_model_id)
        self.prompt = build_prompt(self.tokenizer)
        self.eval()

    def train(self, mode: bool = True) -> ASRModel:
        """Training mode is the projector's alone: the frozen backbones stay in evaluation mode."""
        super().train(False)
        self.training = mode
        self.projector.train(mode)
        return self

    @property
    def window_num_samples(self) -> int:
        """Longest audio that the encoder takes, in samples: 480,000 (30 s) for Whisper."""
        return self.encoder.config.max_source_positions * SAMPLES_PER_ENCODER_FRAME

    @property
    def num_mels(self) -> int:
        return self.encoder.config.num_mel_bins

    def embed_audio(self, input_features: torch.Tensor, max_tokens: int) -> torch.Tensor:
        """(B, M, F) log-mels -> (B, max_tokens, D) audio embeddings in the decoder's type."""
        with torch.no_grad():
            encoded = encode(self.encoder, input_features)[:, : 2 * max_tokens]
        compute_type = encoded.dtype
        with torch.autocast(encoded.device.type, dtype=compute_type, enabled=compute_type != torch.float32):
            return self.projector(encoded.float() if compute_type == torch.float32 else encoded).to(compute_type)

    def _embed_ids(self, ids: list[int], rows: int) -> torch.Tensor:
        """(rows, len(ids), D)"""
        tokens = torch.tensor(ids, device=self.decoder.device)
        return self.decoder.model.embed_tokens(tokens).expand(rows, -1, -1)

    def _join(self, audio: torch.Tensor, num_tokens: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        """Right-padded decoder input: prompt prefix, each row's own count of audio embeddings, then `tail`.

        (B, A, D), (B,), (B, K, D) -> (B, P + A + K, D). Gathered, so no sizes are read back from the device.
        """
        rows, longest, width = audio.shape
        prefix = self._embed_ids(self.prompt.prefix, rows)
        position = torch.arange(longest + tail.shape[1], device=audio.device)[None]  # past the prefix
        source = torch.where(position < num_tokens[:, None], position, position - num_tokens[:, None] + longest)
        source = source.clamp(max=longest + tail.shape[1] - 1)
        body = torch.cat([audio, tail], dim=1).gather(1, source[..., None].expand(-1, -1, width))
        return torch.cat([prefix, body], dim=1)

    def forward(
        self, input_features: torch.Tensor, num_samples: torch.Tensor, labels: torch.Tensor, longest: int | None = None
    ) -> ASROutput:
        """Loss of a batch of clips.

        Args:
            input_features: (B, M, F) log-mels.
            num_samples: (B,) true lengths of the clips in samples.
            labels: (B, L) token ids of `text.label_ids`, padded with -100.
            longest: samples of the longest clip, where known: the padding past it is then left out of the decoder.

        Causal attention and padding on the right need no mask: no real position sees a padded one. Logits are made
        for the label positions only.
        """
        num_tokens = num_audio_tokens(num_samples)
        audio = self.embed_audio(input_features, num_audio_tokens(longest or input_features.shape[-1] * HOP_SAMPLES))
        rows = audio.shape[0]
        suffix = self._embed_ids(self.prompt.suffix, rows)
        answer = self.decoder.model.embed_tokens(labels.clamp(min=0))
        inputs = self._join(audio, num_tokens, torch.cat([suffix, answer], dim=1))
        hidden = self.decoder.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        first = len(self.prompt.prefix) + num_tokens + len(self.prompt.suffix) - 1  # predicts the first label
        position = first[:, None] + torch.arange(labels.shape[1], device=labels.device)
        predicting = hidden.gather(1, position[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.decoder.lm_head(predicting).float()
        loss_sum = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
        return ASROutput(loss_sum, (labels != IGNORED_LABEL).sum())

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_samples: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Greedy transcription.

        Args:
            input_features: (B, M, F) log-mels, of `feature_extractor` or `features.log_mel`.
            num_samples: (B,) true lengths; read off the log-mels' silent end where not given.
            max_new_tokens: default, the config's.
            **kwargs: passed on to the decoder's `generate`.

        Returns:
            (B, at most max_new_tokens) ids, ended by `<|im_end|>` and padded; the prompt is not in them.
        """
        input_features = input_features.to(self.decoder.device)
        if num_samples is None:
            num_samples = estimated_num_samples(input_features)
        num_tokens = num_audio_tokens(num_samples.to(self.decoder.device))
        audio = self.embed_audio(input_features, int(num_tokens.max()))
        inputs = self._join(audio, num_tokens, self._embed_ids(self.prompt.suffix, audio.shape[0]))
        # transformers' generate wants its padding on the left.
        padding = num_tokens.max() - num_tokens
        position = torch.arange(inputs.shape[1], device=inputs.device)[None] - padding[:, None]
        inputs = inputs.gather(1, position.clamp(min=0)[..., None].expand(-1, -1, inputs.shape[-1]))
        return self.decoder.generate(
            inputs_embeds=inputs,
            attention_mask=(position >= 0).long(),
            max_new_tokens=max_new_tokens or self.config.max_new_tokens,
            do_sample=False,
            eos_token_id=self.tokenizer.convert_tokens_to_ids(END_OF_TURN),
            pad_token_id=self.tokenizer.pad_token_id,
            **kwargs,
        )

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Writes config.json and the projector's weights: all that `from_pretrained` needs beside the backbones."""
        save_projector(self.config, self.projector.state_dict(), save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, config: ASRConfig | None = None, **kwargs) -> ASRModel:
        """Loads what `save_pretrained` wrote, from a folder or a hub id; `kwargs` override the config.

        Raises:
            ValueError: the projector's file lacks weights, has others, or ones of other shapes.
        """
        config = config or ASRConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        path = cached_file(pretrained_model_name_or_path, PROJECTOR_FILE)
        state = {key.removeprefix(PROJECTOR_PREFIX): value for key, value in load_file(path).items()}
        model = cls(config)
        expected = {key: value.shape for key, value in model.projector.state_dict().items()}
        if expected != {key: value.shape for key, value in state.items()}:
            raise ValueError(f"{path}: not a projector for {config.audio_model_id} and {config.text_model_id}")
        model.projector.load_state_dict(state)
        return model
