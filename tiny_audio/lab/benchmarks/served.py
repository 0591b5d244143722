"""What the benchmarks of the service serve, a model of true shapes with random weights, and the load that they put on it."""

from __future__ import annotations

from pathlib import Path

from tiny_audio.lab.durations import LONGEST_S, MEAN_S
from tiny_audio.lab.load_test.config import LoadTestConfig
from tiny_audio.lab.random_backbones import SMOLLM3_3B, WHISPER_LARGE_V3_TURBO, write_random_backbones
from tiny_audio.model.config import ASRConfig
from tiny_audio.model.projectors import MLPProjector
from tiny_audio.model.saved import save_model

NUM_TOKENS = 31  # of each text
SERVED = "bf16, trimmed"  # the engine that is measured behind HTTP and in a job
WARM_UP_S, DURATION_S = 3.0, 15.0  # of each number of clients


def model_config(folder: Path, window: str) -> ASRConfig:
    """Returns the config of a bfloat16 model of true shapes, whose random weights are written unless they are there."""
    encoder, decoder = folder / "encoder", folder / "decoder"
    if not (decoder / "config.json").is_file():
        write_random_backbones(folder, device="cuda")
    paths = {"audio_model_id": str(encoder), "text_model_id": str(decoder)}
    return ASRConfig(**paths, dtype="bfloat16", encoder_window=window, max_new_tokens=NUM_TOKENS)


def served_model(folder: Path) -> Path:
    """Writes a model of true shapes with random weights, which the service can load; returns its folder."""
    model = folder / "models/trimmed"
    projector = MLPProjector(WHISPER_LARGE_V3_TURBO["d_model"], SMOLLM3_3B["hidden_size"])
    save_model(model_config(folder / "inputs/backbones", "trimmed"), projector.state_dict(), None, model)
    return model


def loads(url: str, clients: list[int]) -> LoadTestConfig:
    """Returns the loads of so many clients, who send clips of LoquaciousSet's durations."""
    times = {"warm_up_s": WARM_UP_S, "duration_s": DURATION_S}
    return LoadTestConfig(servers={f"{url}/v1": "tiny_audio"}, clients=clients, mean_s=MEAN_S, longest_s=LONGEST_S, **times)
