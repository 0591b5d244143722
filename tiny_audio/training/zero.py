"""Runs the optimizer under DeepSpeed ZeRO: steps it, and reads and writes its state whole. Nothing else imports deepspeed.

The projector trains, and an adapter if there is one, in float32; the frozen backbones keep their own type. ZeRO 1 to 3 shard
their gradients and moments, and ZeRO 3 shards every weight, the frozen ones too. State leaves and enters here whole and by name,
so a checkpoint knows neither the number of workers nor the stage.

DeepSpeed documents no way to put moments back before the first step, nor to keep its collectives from being compiled. So
this file uses four names of its own: `__compatible_ops__`, `fp32_partitioned_groups_flat`, `single_partition_of_fp32_groups`
and `_lazy_init_hp_params_optimizer_state`; and torch's `recompute_views`. `tests/test_private_names.py` looks for them in the
installed versions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch._functorch.config
from torch import nn

from tiny_audio.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def _deepspeed():
    """Imports DeepSpeed, and keeps it from compiling its shared-memory collectives at the first CPU start.

    That takes a minute and a compiler. Where they are marked incompatible it uses gloo, which every torch has.
    """
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def compile_for_stage_3() -> None:
    """Makes what is compiled from now on keep no view of a weight for the backward pass: a view would keep the whole weight."""
    torch._functorch.config.recompute_views = True


def _gather_whole(layers: Sequence[nn.Module], compiled: bool) -> dict:
    """Makes ZeRO 3 gather the weights of a layer all at once, and the next layer's meanwhile; returns its settings for that."""
    from deepspeed.utils import set_z3_leaf_module

    for layer in layers:
        set_z3_leaf_module(layer, True)
    largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
    settings = {"stage3_prefetch_bucket_size": largest, "stage3_param_persistence_threshold": 0}
    # DeepSpeed's own product keeps no gathered weight for the backward pass, but would be compiled for every layer anew
    return settings | {"memory_efficient_linear": not compiled}


def _engine_config(optimizer: OptimizerConfig, zero: dict) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours are ragged; the loss is normalised by hand
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


class Engine:
    """Holds a model and its optimizer under ZeRO `stage`. Torch's process group must be up.

    Args:
        groups: the weights that train, by name; each group has a learning rate of its own.
        whole_layers: modules whose weights stage 3 gathers all at once when they are called, not part by part.
        compiled: whether what they compute is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, nn.Parameter]],
        config: OptimizerConfig,
        stage: int,
        whole_layers: Sequence[nn.Module] = (),
        compiled: bool = False,
    ):
        deepspeed = _deepspeed()
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        adamw = torch.optim.AdamW(
            [{"params": list(group.values())} for group in groups],
            lr=config.learning_rate,
            betas=(config.beta_1, config.beta_2),
            weight_decay=config.weight_decay,
        )
        self.stage, self.adamw = stage, adamw
        self.trained = {name: weight for group in groups for name, weight in group.items()}
        zero = {"stage": stage} | (_gather_whole(whole_layers, compiled) if stage == 3 and whole_layers else {})
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=model, optimizer=adamw, config=_engine_config(config, zero), dist_init_required=False
        )

        self._begin_moments()

    def _begin_moments(self) -> None:
        """Makes the moments that AdamW would make at its first step, where ZeRO 1 and 2 would link the first group's alone."""
        for flat in self._flat_weights():
            zeros = {moment: torch.zeros_like(flat, memory_format=torch.preserve_format) for moment in MOMENTS}
            self.adamw.state[flat] = {"step": torch.tensor(0.0), **zeros}
        if self.stage in (1, 2):
            self.zero._lazy_init_hp_params_optimizer_state()  # links each weight to its part of a shard

    @property
    def device(self) -> torch.device:
        """The device that this worker computes on."""
        return self.engine.device

    def __call__(self, *args):
        return self.engine(*args)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Adds a micro-batch's gradients; after the `last` of a step they are averaged over the workers."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, learning_rates: list[float]) -> float | torch.Tensor:
        """Clips and applies the gradients, at a rate for each group; returns their norm before clipping."""
        for group, rate in zip(self.engine.optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        if self.stage == 0:  # the engine keeps the norm at the other stages only
            norm = nn.utils.get_total_norm([weight.grad for weight in self.trained.values()])
        self.engine.step()
        return norm if self.stage == 0 else self.engine.get_global_grad_norm()

    def _flat_weights(self) -> list[torch.Tensor]:
        """Lists the float32 tensors that AdamW really updates: shards under ZeRO, the weights themselves without."""
        if self.stage == 0:
            return list(self.trained.values())
        return self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights that train, whole, in float32, on the CPU. All workers must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        gather = (lambda weight: weight) if self.stage == 0 else safe_get_full_fp32_param
        return {name: gather(weight).detach().to("cpu", copy=True) for name, weight in self.trained.items()}

    def moments(self) -> dict[str, torch.Tensor]:
        """Returns AdamW's moments by `moment.weight`, whole, in float32, on the CPU. All workers must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {}
        for name, weight in self.trained.items():
            for moment in MOMENTS:
                value = self.adamw.state[weight][moment] if self.stage == 0 else safe_get_full_optimizer_state(weight, moment)
                shape = weight.ds_shape if self.stage == 3 else weight.shape
                moments[f"{moment}.{name}"] = value.detach().reshape(shape).to("cpu", copy=True)
        return moments

    def load_moments(self, moments: dict[str, torch.Tensor], num_steps: int) -> None:
        """Puts back what `moments` returned after `num_steps` steps, at whatever stage and number of workers."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for flat in self._flat_weights():
            self.adamw.state[flat]["step"].fill_(num_steps)
        for name, weight in self.trained.items():
            for moment in MOMENTS:
                value = moments[f"{moment}.{name}"].to(self.device)
                if self.stage == 0:
                    self.adamw.state[weight][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(weight, value, moment)
