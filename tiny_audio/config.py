"""Settings: the dataclasses of training and of the benchmark, and what all configs check with.

Each job's config is a dataclass; config_files.py reads it. Knows nothing of torch or Ray.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upath import UPath

DTYPES = ("float32", "bfloat16")
ZERO_STAGES = (0, 1, 2, 3)
EXPORTS = ("best", "last")
TRACKERS = ("tensorboard", "wandb", "mlflow")
SCHEDULES = ("cosine", "constant")
WEIGHTS = (0.01, 100.0)  # of a dataset: beyond these a slip is likelier than a wish
_DATASET_REFERENCE = re.compile(r"([^:*?\[]+):([\w.-]+):([\w-]+)")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and the remedy in one line."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def absolute(path: str) -> str:
    """A local path from the root of the file system; a URL as it is.

    Raises:
        ConfigError: a relative path in a submitted job, which runs in a copy of its folder that is thrown away.
    """
    if "://" in path or Path(path).expanduser().is_absolute():
        return str(Path(path).expanduser()) if "://" not in path else path
    in_a_copy = "/runtime_resources/working_dir_files/" in str(Path.cwd())
    require(not in_a_copy, f"{path}: a submitted job runs in a copy of its folder; give an absolute path, or a URL")
    return str(Path(path).resolve())


def output_path(name: str) -> Path:
    """Where a job writes its results: on a disk, made absolute.

    Raises:
        ConfigError: a URL; or as `absolute`.
    """
    require("://" not in name, f"{name}: results are written to folders; only runs_dir, model and data may be URLs")
    return Path(absolute(name))


def storage_path(name: str) -> Path | UPath:
    """A path of this machine's, or one on object storage, which has the same methods; its lists are never kept.

    Raises:
        ConfigError: nothing that is installed knows such URLs.
    """
    if "://" not in name:
        return Path(name)
    scheme = name.split("://")[0]
    require(scheme not in ("file", "local", "memory"), f"{name}: give a folder's path, or the URL of object storage")
    try:
        path = UPath(name, use_listings_cache=False)
        path.fs  # noqa: B018 (made here: imports the package that it takes)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())} (pip install s3fs for s3://, gcsfs for gs://)") from None
    return path


def dataset_reference(name: str) -> tuple[str, str, str] | None:
    """(dataset, config, split) of DATASET:CONFIG:SPLIT; None for a glob or URL."""
    found = _DATASET_REFERENCE.fullmatch(name)
    return found and found.groups()


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME."""
    return bool(_HUB_ID.fullmatch(name))


def absolute_data(name: str) -> str:
    """`absolute` for what names data: the folder of a dataset reference is made absolute, a hub id stays.

    Raises:
        ConfigError: as `absolute`.
    """
    reference = dataset_reference(name)
    if reference is None:
        return absolute(name)
    dataset, config, split = reference
    on_hub = is_hub_id(dataset) and not Path(dataset).is_dir()
    return f"{dataset if on_hub else absolute(dataset)}:{config}:{split}"


def require_at_least(config: Any, least: float, *names: str, section: str = "") -> None:
    """Raises ConfigError unless these fields, where they are set, are at least `least`."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= least, f"{section}{name} must be at least {least:g}, not {value}")


def _absolute_backbone(model_id: str) -> str:
    """A local folder made absolute; a hub id and an embedded backbone, which is found by its name anywhere, as they are."""
    embedded = (Path(__file__).resolve().parent.parent / model_id).is_dir() and not Path(model_id).is_absolute()
    return str(Path(model_id).resolve()) if Path(model_id).is_dir() and not embedded else model_id


def require_model(model: str) -> str:
    """Where a saved model is: the absolute path of its folder; a URL, or a hub id (OWNER/NAME), as it is.

    Raises:
        ConfigError: there is no such folder, and it cannot be a hub id.
    """
    if "://" in model:
        require((storage_path(model) / "config.json").is_file(), f"{model}: no saved model there")
        return model
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.resolve())
    hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~", "runs/"))
    require(hub_id, f"{model}: no saved model there; train one first (make quickstart), or name its folder or hub id")
    return model


@dataclass
class ModelConfig:
    """The two frozen backbones and the projector between them."""

    audio_model_id: str = "openai/whisper-large-v3-turbo"
    text_model_id: str = "HuggingFaceTB/SmolLM3-3B"
    projector_type: str = "mlp"
    encoder_window: str = "full"  # full: padded to 30 s, as Whisper was trained | trimmed: clips at their own length
    dtype: str = "bfloat16"  # of the backbones; the projector is float32 always
    attn_implementation: str = "sdpa"  # of the decoder while it transcribes; in training layers.py has its own
    max_new_tokens: int = 256

    def __post_init__(self):
        require(self.dtype in DTYPES, f"model.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        windows = ("full", "trimmed")
        require(self.encoder_window in windows, f"model.encoder_window must be full or trimmed, not {self.encoder_window!r}")
        require(self.projector_type == "mlp", f"model.projector_type must be mlp, not {self.projector_type!r}")


@dataclass
class DataConfig:
    """Parquet shards in LoquaciousSet's columns, and how an epoch is laid out.

    Data are named by DATASET:CONFIG:SPLIT, where DATASET is a hub id or a local folder of the same layout, or by a
    glob: local, hf://, s3://, gs://. `train` may name several with their weights: a row group of weight 2 is read twice
    an epoch, of weight 0.5 every second epoch (half of them in each).
    """

    train: str | dict[str, float] = "speechbrain/LoquaciousSet:small:train"
    dev: str = "speechbrain/LoquaciousSet:small:dev"
    source_weights: dict[str, float] = field(default_factory=dict)  # by `source_of` a row: how often it is taken an epoch
    truecase: bool = False  # gives labels without case the case of written English, see labels.py
    truecase_text: str | None = None  # a file of ordinary English, local or a URL, that shows which words are names
    max_train_rows: int | None = None  # the first rows of each train dataset only
    max_dev_rows: int = 256  # of the dev shards, the first: for the validation loss
    max_wer_rows: int = 64  # of these, the first: for the validation WER, which is far slower; 0 leaves it out
    max_duration_s: float = 30.0  # longer clips, and those over the encoder's window, are rejected and counted, never cut
    batch_rows: int = 32  # the global batch, whatever the number of workers; rejects and source_weights change it
    steps_per_window: int = 16  # steps whose rows are read and shuffled together
    micro_batch_s: float | None = None  # audio that a worker computes at a time, and 2 s a clip; null: as its memory allows
    silence_share: float = 0.0  # made clips of silence or noise, with an empty label, for each row planned
    max_reject_share: float = 0.5  # of the rows read of late (500 or more): beyond it the run stops; 1 lets it go on always
    decode_label: str | None = None  # value of the node label `ray-subcluster` that decode is confined to

    def __post_init__(self):
        require_at_least(
            self, 1, "batch_rows", "steps_per_window", "max_train_rows", "max_dev_rows", "micro_batch_s", section="data."
        )
        require_at_least(self, 0, "max_wer_rows", section="data.")
        require_at_least(self, 0.01, "max_duration_s", section="data.")
        require(0 <= self.silence_share < 1, f"data.silence_share must be in [0, 1), not {self.silence_share}")
        require(0 <= self.max_reject_share <= 1, f"data.max_reject_share must be in [0, 1], not {self.max_reject_share}")
        require(bool(self.train), "data.train names no dataset")
        require(self.truecase or self.truecase_text is None, "data.truecase_text is of no use without data.truecase=true")
        low, high = WEIGHTS
        for name, weight in self.train_weights.items():
            require(low <= weight <= high, f"data.train: the weight of {name} must be {low:g} to {high:g}, not {weight:g}")
        for name, weight in self.source_weights.items():
            require(0 <= weight <= high, f"data.source_weights.{name} must be 0 to {high:g}, not {weight:g}")

    @property
    def train_weights(self) -> dict[str, float]:
        """Every train dataset and its weight."""
        return self.train if isinstance(self.train, dict) else {self.train: 1.0}

    def with_absolute_paths(self) -> DataConfig:
        train = {absolute_data(name): weight for name, weight in self.train_weights.items()}
        return dataclasses.replace(
            self,
            train=train if isinstance(self.train, dict) else next(iter(train)),
            dev=absolute_data(self.dev),
            truecase_text=self.truecase_text and absolute(self.truecase_text),
        )


@dataclass
class AugmentConfig:
    """Training clips made harder, see augment.py; all off. Validation and evaluation hear clips as they are."""

    speed_factors: list[float] = field(default_factory=list)  # one is drawn for each clip, such as [0.9, 1.0, 1.1]
    noise_share: float = 0.0  # of the clips, that get white or brown noise
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 20.0])  # loudest and softest of that noise
    time_masks: int = 0  # spans of time hidden in each clip; sizes as SpecAugment's policy LD (Park et al. 2019, table 1)
    time_mask_frames: int = 100  # widest of them, in mel frames of 10 ms; a fifth of the clip at most
    frequency_masks: int = 0  # bands of mel bins hidden in each clip
    frequency_mask_mels: int = 27  # widest of them, in mel bins (LD has 80 bins in all, Whisper 80 or 128)

    def __post_init__(self):
        fair = all(0.5 <= factor <= 2 for factor in self.speed_factors)
        require(fair, f"augment.speed_factors must lie in [0.5, 2], not {self.speed_factors}")
        require(0 <= self.noise_share <= 1, f"augment.noise_share must be in [0, 1], not {self.noise_share}")
        ordered = len(self.noise_snr_db) == 2 and self.noise_snr_db[0] <= self.noise_snr_db[1]
        require(ordered, f"augment.noise_snr_db must be [lowest, highest], not {self.noise_snr_db}")
        require_at_least(self, 0, "time_masks", "time_mask_frames", "frequency_masks", "frequency_mask_mels", section="augment.")

    @property
    def is_on(self) -> bool:
        return bool(self.speed_factors or self.noise_share or self.time_masks or self.frequency_masks)


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up."""

    learning_rate: float = 3e-4
    schedule: str = "cosine"  # after the warm-up: cosine, down to zero at the last step | constant
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    max_grad_norm: float = 1.0

    def __post_init__(self):
        require(self.schedule in SCHEDULES, f"optimizer.schedule must be cosine or constant, not {self.schedule!r}")
        require_at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", section="optimizer.")
        for name in ("beta_1", "beta_2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must be in [0, 1), not {getattr(self, name)}")


@dataclass
class TrainConfig:
    """One training run. The worker count is the only dial: the result does not depend on it."""

    name: str = "train"  # the run's folder under runs_dir; the same name resumes the run
    runs_dir: str = "runs"  # a folder that all nodes share, or a URL: s3://bucket/prefix, gs://
    seed: int = 42
    num_steps: int = 500
    num_workers: int = 1
    min_workers: int | None = None  # as few may go on where nodes are lost, until others come; null: exactly num_workers
    use_gpu: bool = True
    threads_per_worker: int = 1  # CPU threads of a worker, where there is no GPU
    zero_stage: int = 2
    compile: bool = True  # the layers of the backbones, where there is a GPU and zero_stage is below 3
    fp8: bool = False  # the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    cache_features_gib: float = 0.0  # host memory per worker for encoder frames, where epochs repeat: 1 GiB for 2.3 hours
    eval_every: int = 100
    checkpoint_every: int = 100  # and after every validation that is the best so far
    keep_checkpoints: int = 2  # the best ones; the last one is kept beside them, to resume from
    export: str = "best"  # which checkpoint model/ is made from: best, by WER on the dev clips (loss, if none) | last
    early_stopping_patience: int | None = None  # validations in a row without a better one that end the run
    log_every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # any of tensorboard, wandb, mlflow; see tracking.py
    max_loss_rise: float = 3.0  # nats per token: a logged loss so far above the lowest of this start ends the run
    watchdog_timeout_s: float = 900.0  # that a worker may be at one thing before it counts as hung, and all start again
    max_failures: int = 3  # restarts from the last checkpoint before the run gives up
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        require(self.zero_stage in ZERO_STAGES, f"zero_stage must be one of 0, 1, 2, 3, not {self.zero_stage}")
        require_at_least(self, 1, "num_workers", "num_steps", "eval_every", "checkpoint_every", "log_every", "keep_checkpoints")
        require_at_least(self, 1, "threads_per_worker", "watchdog_timeout_s", "early_stopping_patience", "min_workers")
        unknown = [name for name in self.trackers if name not in TRACKERS]
        require(not unknown, f"trackers: {unknown and unknown[0]!r} is none of {', '.join(TRACKERS)}")
        require(self.export in EXPORTS, f"export must be best or last, not {self.export!r}")
        require_at_least(self, 0, "seed", "max_failures", "max_loss_rise", "cache_features_gib")
        require(
            not (self.cache_features_gib and self.zero_stage == 3),
            "cache_features_gib lets workers skip the encoder, which zero_stage=3 shares out: it wants stage 0, 1 or 2",
        )
        require(
            not (self.cache_features_gib and self.augment.is_on),
            "cache_features_gib keeps what the encoder made of a clip, and augment changes clips every epoch: choose one",
        )
        require(not (self.fp8 and self.zero_stage == 3), "fp8=true keeps the backbones whole: it wants zero_stage 0, 1 or 2")
        able = self.use_gpu and self.model.dtype == "bfloat16"
        require(able or not self.fp8, "fp8=true stands between layers in bfloat16 on a GPU: it wants model.dtype=bfloat16")
        secret = "://" in self.runs_dir and "@" in self.runs_dir
        require(not secret, "runs_dir holds a user or key, and runs keep their config: leave it to the environment (AWS_PROFILE)")
        storage_path(self.runs_dir)
        require(
            self.data.batch_rows >= self.num_workers,
            f"data.batch_rows={self.data.batch_rows} is less than a row for each of num_workers={self.num_workers}",
        )
        require(
            (self.min_workers or 1) <= self.num_workers,
            f"min_workers={self.min_workers} must not be above num_workers={self.num_workers}, the most there will be",
        )

    def with_absolute_paths(self) -> TrainConfig:
        """For workers, which run elsewhere: local paths made absolute; URLs and hub ids as they are."""
        model = dataclasses.replace(
            self.model,
            audio_model_id=_absolute_backbone(self.model.audio_model_id),
            text_model_id=_absolute_backbone(self.model.text_model_id),
        )
        return dataclasses.replace(self, runs_dir=absolute(self.runs_dir), data=self.data.with_absolute_paths(), model=model)

    @property
    def score_metric(self) -> str:
        """What validations are compared by: lower is better."""
        return "val_wer" if self.data.max_wer_rows else "val_loss"

    @property
    def run_dir(self) -> Path | UPath:
        return storage_path(self.runs_dir) / self.name


@dataclass
class BenchmarkConfig:
    """What to measure, and where its inputs (9 GB) and results go."""

    part: str = "step"
    soak_minutes: float = 45.0  # of part=soak
    output_dir: str = "runs/benchmark"

    def __post_init__(self):
        parts = ("step", "memory", "profile", "seed_job", "scale", "restart", "fp8", "transcribe", "plan", "soak")
        require_at_least(self, 5, "soak_minutes")
        require(self.part in parts, f"part must be one of {', '.join(parts)}, not {self.part!r}")
