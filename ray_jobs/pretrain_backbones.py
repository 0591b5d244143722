"""Pre-trains the embedded backbones in `tiny_audio/backbones`: a Whisper encoder and a SmolLM3 decoder of 2 M parameters each.

They learn from synthetic speech and generated sentences alone, and know nothing of each other. This takes minutes on one
GPU, and most of a day on a CPU (device=cpu). Needs the extra [data].

  python -m ray_jobs.pretrain_backbones ray_jobs/configs/backbones.yaml output_dir=/tmp/backbones
"""

import json
from pathlib import Path

from ray_jobs.command import run_command
from tiny_audio.lab.pretraining.config import PretrainConfig


def _pretrain_part(config: PretrainConfig, part: str) -> None:
    import torch

    from tiny_audio.lab.pretraining.decoder import pretrain_decoder
    from tiny_audio.lab.pretraining.encoder import pretrain_encoder

    torch.set_float32_matmul_precision("high")
    facts = {"encoder": pretrain_encoder, "decoder": pretrain_decoder}[part](config)
    facts["device"] = torch.cuda.get_device_name() if config.device == "cuda" else "CPU"
    print(f"{part}: {json.dumps(facts)}", flush=True)
    (Path(config.output_dir) / part / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")


def run(config: PretrainConfig) -> None:
    """Trains both side by side, in processes of their own."""
    from multiprocessing import get_context

    context = get_context("spawn")
    processes = [context.Process(target=_pretrain_part, args=(config, part)) for part in ("encoder", "decoder")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(__doc__, PretrainConfig, run)
