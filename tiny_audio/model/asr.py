"""`ASRModel`: a frozen Whisper encoder and a frozen decoder (see `decoders/`), joined by a small trained projector.

Shape letters are those of `features.py`. Nothing here knows of Ray, DeepSpeed or files of audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tiny_audio.audio.features import log_mel
from tiny_audio.audio.masks import apply_masks
from tiny_audio.config import require
from tiny_audio.model.config import SETTINGS, ASRConfig, require_no_keywords
from tiny_audio.model.ctc import AudioCTC
from tiny_audio.model.ctc_head import load_ctc_head, load_encoders_ctc_head
from tiny_audio.model.decoder import FAMILIES, load_decoder, load_tokenizer
from tiny_audio.model.encoder import load_encoder, load_feature_extractor, window_num_samples
from tiny_audio.model.layers import encoder_layers, plain_layers, stem
from tiny_audio.model.lora import TRAINED_PREFIX, Adapter, adapter_weights, merge_adapter
from tiny_audio.model.non_finite import ClipCheck
from tiny_audio.model.output import ASROutput
from tiny_audio.model.packing import Group, PackedBatch, Packing, count_tokens, packed_log_mels, padded_rows, prompted_log_mels
from tiny_audio.model.projectors import fresh_projector
from tiny_audio.model.prompt import build_prompt
from tiny_audio.model.saved import (
    HUB_OPTIONS,
    load_projector,
    load_saved_adapter,
    one_device,
    put_weights,
    require_readable,
    save_model,
)
from tiny_audio.model.segments import Segments
from tiny_audio.storage import local_folder
from tiny_audio.transformers_names import attention_of


class ASRModel(PreTrainedModel):
    """Turns speech into text. Building one loads both backbones by their ids and makes a fresh projector.

    Only the projector trains and is saved. `tokenizer` and `feature_extractor` are the backbones' own.
    """

    config_class = ASRConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities, output_modalities = ("audio",), ("text",)
    _supports_sdpa = _supports_flash_attn = True  # as both backbones do

    def __init__(self, config: ASRConfig):
        super().__init__(config)
        dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
        attention = attention_of(config) or "sdpa"
        self.encoder = load_encoder(config.audio_model_id, dtype, attention).requires_grad_(False)
        self.decoder = load_decoder(config.text_model_id, dtype, attention).requires_grad_(False)
        self.generation_config = self.decoder.generation_config  # the decoder's `generate` is what reads it
        self.projector = self.fresh_projector()
        self.feature_extractor = load_feature_extractor(config.audio_model_id)
        self.tokenizer = load_tokenizer(config.text_model_id)
        self.family = FAMILIES[self.decoder.config.model_type]
        self.prompt = build_prompt(self.tokenizer, self.family.system_prompt)
        self.layers = plain_layers(self.family)
        self.adapter: Adapter | None = None  # what is merged into the decoder's weights
        self.ctc: AudioCTC | None = None  # the second loss of a training, if it has one
        self.ctc_head = load_encoders_ctc_head(config.audio_model_id, self.encoder.config.d_model)  # None: it has none
        self.ctc_alone = False  # whether a training pass leaves out the decoder, and with it the first loss
        self.eval()

    def fresh_projector(self) -> nn.Module:
        """Makes a projector of this model's kind, with first weights."""
        return fresh_projector(self.config, self.encoder.config.d_model, self.decoder.get_input_embeddings().weight)

    def trained_groups(self) -> list[dict[str, nn.Parameter]]:
        """Lists the weights that train, by name: the projector's, and those of an adapter if the decoder has one."""
        adapter = {f"{TRAINED_PREFIX}{name}": weight for name, weight in adapter_weights(self.decoder).items()}
        return [dict(self.projector.named_parameters()), *([adapter] if adapter else [])]

    def trained_weights(self) -> dict[str, nn.Parameter]:
        """Returns all weights that train, by name, as a checkpoint has them."""
        return {name: weight for group in self.trained_groups() for name, weight in group.items()}

    @torch.no_grad()
    def load_trained(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Puts in weights that were trained.

        Args:
            weights: by name, as `trained_weights` gives them.
            source: where they are from, for the message.

        Raises:
            ConfigError: they are not those that this model trains.
        """
        ours = self.trained_weights()
        is_ours = {name: weight.shape for name, weight in ours.items()} == {name: x.shape for name, x in weights.items()}
        kinds = "model.projector_type, model.frames_per_token, the backbones, lora.rank and lora.targets"
        require(is_ours, f"{source}: its trained weights are not those of this model; they hang on {kinds}")
        for name, weight in ours.items():
            weight.copy_(weights[name])

    def train(self, mode: bool = True) -> ASRModel:
        """Puts the projector in training mode, or out of it; the frozen backbones stay in evaluation mode."""
        super().train(False)
        self.training = mode
        self.projector.train(mode)
        return self

    @property
    def window_num_samples(self) -> int:
        """The longest audio that the encoder takes, in samples: 480,000 (30 s) for Whisper."""
        return window_num_samples(self.encoder.config)

    @property
    def frames_per_token(self) -> int:
        """The number of encoder frames (50/s) that the projector makes an audio token of, k."""
        return self.projector.frames_per_token

    @property
    def num_mels(self) -> int:
        """The number of mel bins in a log-mel frame, M."""
        return self.encoder.config.num_mel_bins

    @property
    def trimmed(self) -> bool:
        """Whether clips are encoded at their own length, instead of padded to the window."""
        return self.config.encoder_window == "trimmed"

    def packing(self, grouped: bool = True) -> Packing:
        """Describes how `pack` must lay out clips for `forward`."""
        return Packing(self.tokenizer, self.prompt, self.window_num_samples, self.trimmed, self.frames_per_token, grouped)

    def encoder_layers(self, hidden: torch.Tensor, frames: Segments | None) -> torch.Tensor:
        """Runs this model's encoder layers, as `layers.encoder_layers` does."""
        return encoder_layers(self.encoder, hidden, frames, self.layers.encoder)

    @torch.no_grad()
    def encode(
        self,
        log_mels: Iterable[torch.Tensor],
        frame_index: list[torch.Tensor],
        frames: Segments,
        layers: Callable[[torch.Tensor, Segments | None], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Encodes groups of log-mels, (b, M, F) each, and keeps the frames that clips fill, end to end: (frames, C).

        Args:
            log_mels: the log-mels of each group, whose clips are padded alike.
            frame_index: which frames of each group to keep, counted over its rows.
            frames: where each clip's frames lie in the result.
            layers: computes what `encoder_layers` does, which is the default.
        """
        layers = layers or self.encoder_layers
        stems = (stem(self.encoder, mels) for mels in log_mels)
        if not self.trimmed:
            encoded = (layers(part, None) for part in stems)
            return torch.cat([part.flatten(0, 1)[index] for part, index in zip(encoded, frame_index, strict=True)])
        return layers(torch.cat([part.flatten(0, 1)[index] for part, index in zip(stems, frame_index, strict=True)]), frames)

    def project(self, encoded: torch.Tensor, first_tokens: torch.Tensor, projector: nn.Module | None = None) -> torch.Tensor:
        """Turns encoder frames (k A, C) into audio tokens (A, D) of the decoder's type, by another projector if one is given."""
        compute_type = encoded.dtype
        with torch.autocast(encoded.device.type, dtype=compute_type, enabled=compute_type != torch.float32):
            return (projector or self.projector)(encoded, first_tokens).to(compute_type)

    def encode_batch(self, batch: PackedBatch, layers: Callable | None = None) -> torch.Tensor | None:
        """Encodes those clips of a packed batch whose frames are not known, from their PCM: (frames, C)."""
        if not batch.groups:
            return None
        mels = (self._log_mels(batch, group) for group in batch.groups)
        return self.encode(mels, batch.group_frames(), batch.frames, layers)

    def _log_mels(self, batch: PackedBatch, group: Group) -> torch.Tensor:
        mels = log_mel(padded_rows(batch.pcm, batch.sample_bounds, group), self.num_mels)
        return apply_masks(mels, batch.masks.of(group.first, group.last)) if batch.masks else mels

    def rotations(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Computes the cosines and sines, (N, d), that turn each layer's heads; 1 and 0 where a layer has no rotary positions."""
        cos, sin = (turn[0] for turn in self.decoder.model.rotary_emb(hidden, positions[None]))
        turned, unturned = (cos, sin), (torch.ones_like(cos), torch.zeros_like(sin))
        return [turned if self.family.has_rotations(layer.self_attn) else unturned for layer in self.decoder.model.layers]

    def decode(self, audio: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Runs the decoder with the audio tokens (A, D) in their places; returns the loss of each label, (L,).

        Attention is causal within each clip. What all prompts begin with is computed once, behind the clips; the last layer and
        the logits are computed at the predicting positions only.
        """
        decoder = self.decoder.model
        hidden = decoder.embed_tokens(torch.cat([batch.ids, batch.head])).index_copy(0, batch.audio, audio)
        positions = torch.cat([batch.positions, torch.arange(len(batch.head), device=hidden.device)])
        *turns, last_turns = self.rotations(hidden, positions)
        *layers, last = decoder.layers
        for layer, layer_turns in zip(layers, turns, strict=True):
            hidden = self.layers.decoder(layer, hidden, *layer_turns, batch.shared)
        hidden = self.layers.last_decoder(last, hidden, *last_turns, batch.shared, batch.predicting, batch.answers)
        return self.layers.losses(self.decoder.lm_head, decoder.norm(hidden), batch.labels)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_samples: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> ASROutput:
        """Computes the loss of a batch that `packing.pack` laid out, on the model's device, or of log-mels and labels.

        Args:
            batch: the packed clips; nothing else is given then.
            input_features: (B, M, F) log-mels, as for `generate`.
            labels: (B, L) ids that the decoder must answer with, -100 where there are none: those of `prompt.label_ids`.
            num_samples: as for `generate`.
            attention_mask: as for `generate`.

        Raises:
            ValueError: there is neither a batch nor log-mels with labels.
        """
        if batch is None:
            if input_features is None or labels is None:
                raise ValueError("forward gives the loss of a packed batch, or of input_features and labels; generate gives text")
            num_tokens = count_tokens(self, input_features, num_samples, attention_mask)
            batch = packed_log_mels(self, input_features, labels, num_tokens)
        encoded = self.encode_batch(batch)
        frames = torch.cat([part for part in (batch.known, encoded) if part is not None])
        clips = ClipCheck(batch.first_tokens, len(batch.audio), batch.labels, batch.answers)
        audio = clips.check_gradients(self.project(clips.check_frames(frames), batch.first_tokens))
        ctc = self.ctc if audio.requires_grad else None
        spoken = (audio, self.decoder.lm_head, batch.labels, batch.num_tokens, batch.num_labels)
        losses = ctc.label_losses(*spoken) if ctc and self.ctc_alone else self.decode(audio, batch)
        loss_sum = clips.check_losses(losses).sum()
        if ctc and not self.ctc_alone:
            loss_sum = loss_sum + ctc.losses(*spoken).sum() * (batch.num_label_tokens > 0)  # silence in place of none is nothing
        return ASROutput(loss_sum, batch.num_label_tokens, clips, encoded)

    @classmethod
    def can_generate(cls) -> bool:
        """Returns True, for pipelines ask; `generate` is not transformers' own, by which they would tell."""
        return True

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_samples: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Transcribes greedily, unless `kwargs` ask for sampling or beams.

        Args:
            input_features: (B, M, F) log-mels, of `feature_extractor` or `features.log_mel`.
            num_samples: (B,) true lengths; read off the log-mels' silent end where neither these nor a mask are given.
            max_new_tokens: default, the config's.
            attention_mask: (B, F) 1 for the frames that clips fill, as `feature_extractor` gives it.
            **kwargs: passed on to the decoder's `generate`: `do_sample`, `num_beams`, `streamer`. A `generation_config`
                replaces our defaults.

        Returns:
            (B, at most max_new_tokens) ids, ended by the end of turn and padded; the prompt is not in them.

        Raises:
            ValueError: `input_features` have another shape than the encoder takes, or are shorter than `num_samples`.
        """
        num_tokens = count_tokens(self, input_features, num_samples, attention_mask)
        inputs, mask = prompted_log_mels(self, input_features.to(self.decoder.device), num_tokens)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
        if kwargs.get("generation_config") is None:
            options = {"do_sample": False, "max_new_tokens": self.config.max_new_tokens, **options}
        return self.decoder.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            eos_token_id=self.prompt.end_id,
            pad_token_id=self.prompt.pad_id,
            **{**options, **kwargs},
        )

    def save_pretrained(self, save_directory, *, push_to_hub: bool = False, max_shard_size=None, **upload) -> None:
        """Writes config.json, the projector, an adapter and a CTC head: what `from_pretrained` needs beside the backbones.

        Args:
            save_directory: a folder, which is made where there is none.
            push_to_hub: whether to upload it too.
            max_shard_size: has no effect, for the projector is one file; transformers' `push_to_hub` passes it.
            **upload: `push_to_hub`'s arguments; the default `repo_id` is the folder's name.

        Raises:
            TypeError: a keyword is unknown.
        """
        if not push_to_hub:
            require_no_keywords("save_pretrained", upload)
        save_model(self.config, self.projector.state_dict(), self.adapter, save_directory, self.ctc_head)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **upload})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        config: ASRConfig | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        **kwargs,
    ) -> ASRModel:
        """Loads what `save_pretrained` wrote. An adapter is merged into the decoder's weights.

        Args:
            pretrained_model_name_or_path: a folder, a URL or a hub id.
            config: default, the folder's.
            dtype: the backbones', in place of the config's; "auto" is the config's.
            torch_dtype: transformers' older name for `dtype`.
            device_map: the one device to load to (`cuda:1`), or "auto": a GPU if there is one.
            attn_implementation: the decoder's while it generates.
            **kwargs: HUB_OPTIONS (`revision` is that of the config and the weights), and `ASRConfig`'s own arguments,
                in place of the config's.

        Raises:
            ValueError: the projector's file lacks weights, has others, or ones of other shapes; the model is of another
                version than this code reads; or `device_map` names several devices.
            TypeError: a keyword is unknown.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        require_no_keywords("ASRModel.from_pretrained", kwargs)
        dtype = torch_dtype if dtype is None else dtype
        settings |= {"dtype": dtype} if dtype not in (None, "auto") else {}
        settings |= {"attn_implementation": attn_implementation} if attn_implementation else {}
        device = None if device_map is None else one_device(device_map)
        with local_folder(str(pretrained_model_name_or_path)) as folder:
            config = config or ASRConfig.from_pretrained(folder, **hub)
            require_readable(str(pretrained_model_name_or_path), config)
            state, adapter = load_projector(folder, **hub), load_saved_adapter(folder, **hub)
            model = cls(config.replaced(**settings))
            model.ctc_head = load_ctc_head(folder, model.encoder.config.d_model, **hub) or model.ctc_head
        put_weights(model.projector, state, str(pretrained_model_name_or_path), config)
        if adapter:
            model.adapter = merge_adapter(model.decoder, adapter)
        if device is not None:
            model.to(device).hf_device_map = {"": device}  # where pipelines look for it
        return model
