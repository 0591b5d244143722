"""`ASRModel`: a frozen Whisper encoder and a frozen SmolLM3 decoder, joined by a small trained projector.

Shape letters are those of `features.py`. Nothing here knows of Ray, DeepSpeed or files of audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tiny_audio.audio.clip import HOP_SAMPLES, SAMPLES_PER_ENCODER_FRAME, SAMPLES_PER_TOKEN, num_audio_tokens
from tiny_audio.audio.features import estimated_num_samples, log_mel
from tiny_audio.audio.masks import apply_masks
from tiny_audio.model.backbone import load_feature_extractor, load_tokenizer
from tiny_audio.model.backbone_weights import load_decoder, load_encoder
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.layers import Layers, encoder_layers, stem
from tiny_audio.model.non_finite import ClipCheck
from tiny_audio.model.packing import Group, PackedBatch, Packing, frame_index, padded_rows
from tiny_audio.model.projectors import Projector
from tiny_audio.model.prompt import END_OF_TURN, build_prompt
from tiny_audio.model.saved import load_projector, save_projector
from tiny_audio.model.segments import Segments, segments
from tiny_audio.storage import local_folder

MELS_PER_TOKEN = SAMPLES_PER_TOKEN // HOP_SAMPLES


@dataclass
class ASROutput:
    """Loss of a batch, summed over its label tokens, and their number; `loss` is the mean.

    A clip that meets a NaN or an infinity is left out of the loss and of the gradients: see `non_finite.py`.
    """

    loss_sum: torch.Tensor
    num_label_tokens: int
    clips: ClipCheck  # of which each was finite, and the number of label tokens that these have
    encoded: torch.Tensor | None  # (frames, C) that the encoder made; none where all were known

    @property
    def loss(self) -> torch.Tensor:
        return self.loss_sum / max(1, self.num_label_tokens)


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
        self.feature_extractor = load_feature_extractor(config.audio_model_id)
        self.tokenizer = load_tokenizer(config.text_model_id)
        self.prompt = build_prompt(self.tokenizer)
        self.layers = Layers()
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

    @property
    def trimmed(self) -> bool:
        return self.config.encoder_window == "trimmed"

    def packing(self, grouped: bool = True) -> Packing:
        """How clips must be laid out for `forward`."""
        return Packing(self.tokenizer, self.prompt, self.window_num_samples, self.trimmed, grouped)

    def encoder_layers(self, hidden: torch.Tensor, frames: Segments | None) -> torch.Tensor:
        """`layers.encoder_layers` of this model's encoder."""
        return encoder_layers(self.encoder, hidden, frames, self.layers.encoder)

    @torch.no_grad()
    def encode(
        self,
        log_mels: Iterable[torch.Tensor],
        frame_index: list[torch.Tensor],
        frames: Segments,
        layers: Callable[[torch.Tensor, Segments | None], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Encoder frames that clips fill, end to end: groups of (b, M, F) log-mels -> (frames, C).

        Args:
            log_mels: of a group of clips at a time, padded alike.
            frame_index: each group's frames to keep, its rows flattened.
            frames: where each clip's frames lie in the result.
            layers: computes what `encoder_layers` does, which is the default.
        """
        layers = layers or self.encoder_layers
        stems = (stem(self.encoder, mels) for mels in log_mels)
        if not self.trimmed:
            encoded = (layers(part, None) for part in stems)
            return torch.cat([part.flatten(0, 1)[index] for part, index in zip(encoded, frame_index, strict=True)])
        return layers(torch.cat([part.flatten(0, 1)[index] for part, index in zip(stems, frame_index, strict=True)]), frames)

    def project(self, encoded: torch.Tensor, first_tokens: torch.Tensor) -> torch.Tensor:
        """Encoder frames (2 A, C) -> audio tokens (A, D) in the decoder's type."""
        compute_type = encoded.dtype
        with torch.autocast(encoded.device.type, dtype=compute_type, enabled=compute_type != torch.float32):
            return self.projector(encoded, first_tokens).to(compute_type)

    def encode_batch(self, batch: PackedBatch, layers: Callable | None = None) -> torch.Tensor | None:
        """`encode` of those clips of a packed batch whose frames are not known, from their PCM."""
        if not batch.groups:
            return None
        mels = (self._log_mels(batch, group) for group in batch.groups)
        return self.encode(mels, batch.group_frames(), batch.frames, layers)

    def _log_mels(self, batch: PackedBatch, group: Group) -> torch.Tensor:
        mels = log_mel(padded_rows(batch.pcm, batch.sample_bounds, group), self.num_mels)
        return apply_masks(mels, batch.masks.of(group.first, group.last)) if batch.masks else mels

    def rotations(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Cosines and sines (N, d) that turn each layer's heads; 1 and 0 where a layer has no rotary positions."""
        cos, sin = (turn[0] for turn in self.decoder.model.rotary_emb(hidden, positions[None]))
        turned, unturned = (cos, sin), (torch.ones_like(cos), torch.zeros_like(sin))
        return [turned if layer.self_attn.use_rope else unturned for layer in self.decoder.model.layers]

    def decode(self, audio: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Audio tokens (A, D) in their places -> the loss of each label (L,).

        Causal attention within each clip; the last layer and the logits are made for the predicting positions only.
        """
        decoder = self.decoder.model
        hidden = decoder.embed_tokens(batch.ids).index_copy(0, batch.audio, audio)
        *turns, last_turns = self.rotations(hidden, batch.positions)
        *layers, last = decoder.layers
        for layer, layer_turns in zip(layers, turns, strict=True):
            hidden = self.layers.decoder(layer, hidden, *layer_turns, batch.clips)
        hidden = self.layers.last_decoder(last, hidden, *last_turns, batch.clips, batch.predicting, batch.answers)
        return self.layers.losses(decoder.norm, self.decoder.lm_head, hidden, batch.labels)

    def forward(self, batch: PackedBatch) -> ASROutput:
        """Loss of a batch of clips that `tensors.pack` laid out, on the model's device."""
        encoded = self.encode_batch(batch)
        frames = torch.cat([part for part in (batch.known, encoded) if part is not None])
        clips = ClipCheck(batch.first_tokens, len(batch.audio), batch.labels, batch.answers)
        audio = clips.check_gradients(self.project(clips.check_frames(frames), batch.first_tokens))
        return ASROutput(clips.check_losses(self.decode(audio, batch)).sum(), batch.num_label_tokens, clips, encoded)

    def _prompted(self, log_mels: torch.Tensor, num_tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `generate` starts from: (B, T, D) prompts with their audio, padded on the left, and the (B, T) mask."""
        rows, device = len(num_tokens), log_mels.device
        missing = MELS_PER_TOKEN * max(num_tokens) - log_mels.shape[-1]
        if missing >= MELS_PER_TOKEN:
            raise ValueError(f"num_samples is more than the {log_mels.shape[-1]} frames of input_features hold")
        log_mels = pad(log_mels, (0, max(0, missing)), mode="replicate")  # the last token's, where it was cut
        group = Group(0, rows, log_mels.shape[-1] * HOP_SAMPLES)
        num_frames = [2 * n for n in num_tokens]
        index = frame_index([group], num_frames).to(device)
        first = segments(num_tokens).bounds[:-1].to(device, torch.int64)
        audio = self.project(self.encode([log_mels], [index], segments(num_frames).to(device)), first).split(num_tokens)
        prefix, suffix = (
            self.decoder.model.embed_tokens(torch.tensor(ids, device=device)) for ids in (self.prompt.prefix, self.prompt.suffix)
        )
        prompts = pad_sequence([torch.cat([prefix, tokens, suffix]) for tokens in audio], batch_first=True, padding_side="left")
        lengths = torch.tensor(num_tokens, device=device) + len(prefix) + len(suffix)
        return prompts, (torch.arange(prompts.shape[1], device=device) >= prompts.shape[1] - lengths[:, None]).long()

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
        num_tokens = num_audio_tokens(num_samples).tolist()
        inputs, mask = self._prompted(input_features, num_tokens)
        return self.decoder.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
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
        """Loads what `save_pretrained` wrote, from a folder, a URL or a hub id; `kwargs` override the config.

        Raises:
            ValueError: the projector's file lacks weights, has others, or ones of other shapes.
        """
        with local_folder(str(pretrained_model_name_or_path)) as folder:
            config = config or ASRConfig.from_pretrained(folder, **kwargs)
            state = load_projector(folder)
        model = cls(config)
        expected = {key: value.shape for key, value in model.projector.state_dict().items()}
        if expected != {key: value.shape for key, value in state.items()}:
            backbones = f"{config.audio_model_id} and {config.text_model_id}"
            raise ValueError(f"{pretrained_model_name_or_path}: not a projector for {backbones}")
        model.projector.load_state_dict(state)
        return model
