"""What the parts that measure GPUs read: backbones of the true shapes with random weights, and shards of noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tiny_audio.config import require
from tiny_audio.lab.benchmarks.config import BenchmarkConfig
from tiny_audio.lab.benchmarks.noise import write_noise_shards
from tiny_audio.lab.random_backbones import write_random_backbones
from tiny_audio.model.asr import ASRModel
from tiny_audio.model.config import ASRConfig

DEV_ROWS = 512


@dataclass(frozen=True)
class Inputs:
    """Globs of the shards, and folders of the backbones."""

    train: str
    dev: str
    encoder: str
    decoder: str

    def overrides(self) -> list[str]:
        """The keys of a training that reads these inputs, as a command line gives them."""
        paths = {"data.train": self.train, "data.dev": self.dev}
        paths |= {"model.audio_model_id": self.encoder, "model.text_model_id": self.decoder}
        return [f"{key}={value}" for key, value in paths.items()]

    def model(self) -> ASRModel:
        """Loads the backbones into a bfloat16 model on the GPU, at 25 tokens of audio a second."""
        config = ASRConfig(audio_model_id=self.encoder, text_model_id=self.decoder, dtype="bfloat16", encoder_window="trimmed")
        torch.manual_seed(0)
        return ASRModel(config).to("cuda")


def count_gpus(config: BenchmarkConfig) -> int:
    """Returns how many GPUs this machine has.

    Raises:
        ConfigError: it has none.
    """
    num_gpus = torch.cuda.device_count()
    require(num_gpus > 0, f"part={config.part} measures GPUs, and there is none here; data, plan and soak need none")
    return num_gpus


def gpu_facts() -> dict:
    """Returns the name and the memory of this process's GPU: figures of different GPUs do not compare."""
    return {"gpu": torch.cuda.get_device_name(), "gpu_memory_gib": torch.cuda.mem_get_info()[1] / 2**30}


def make_inputs(config: BenchmarkConfig, train_rows: int = 0) -> Inputs:
    """Writes noise shards of 0.3 MB a row, and backbones of about 8 GB unless they are there.

    Raises:
        ConfigError: this machine has no GPU.
    """
    count_gpus(config)
    folder = config.output_folder / "inputs"
    encoder, decoder = folder / "backbones/encoder", folder / "backbones/decoder"
    if not (decoder / "config.json").is_file():
        write_random_backbones(folder / "backbones", device="cuda")
        torch.cuda.empty_cache()  # the workers of the runs need the memory that the weights were drawn in
    train = write_noise_shards(folder / f"train-{train_rows}", train_rows, seed=0)
    return Inputs(train, write_noise_shards(folder / "dev", DEV_ROWS, seed=1000), str(encoder), str(decoder))
