"""The settings of a training, and the rules that the settings of every job follow.

Settings are dataclasses that pydantic checks; config_files.py reads them from YAML and the command line. The comment at a
field is its help: `--help` prints it. This module imports neither torch nor Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt
from upath import UPath

T = TypeVar("T")
PACKAGE_ROOT = Path(__file__).resolve().parent.parent
BACKBONES = "tiny_audio/backbones"  # the embedded ones, below PACKAGE_ROOT
_DATASET_REFERENCE = re.compile(r"([^:*?\[]+):([\w.-]+):([\w-]+)")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_UNION_MEMBER = re.compile(r"(dict|function-before)\[")  # how pydantic names the members of `Text | dict[...]`
_WANTED = {  # in place of pydantic's "Input should be ..."
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
}


class ConfigError(ValueError):
    """Settings or inputs that cannot be used. The message is one line that names the key or file, and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def one_line(error: object) -> str:
    """An error's message without line breaks, cut at 300 characters; its type's name where it has no message."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME of a repository on the Hugging Face hub. "runs/NAME" is a folder of ours."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith("runs/")


def embedded_backbone(model_id: str) -> Path | None:
    """The folder of a backbone that lies in this package; it has the same name, tiny_audio/backbones/NAME, on every machine."""
    folder = PACKAGE_ROOT / model_id
    return folder if model_id.startswith(f"{BACKBONES}/") and folder.is_dir() else None


def absolute(path: str) -> str:
    """Makes a local path absolute; a URL stays as it is.

    Raises:
        ConfigError: the path is relative, in a submitted job: that runs in a copy of its folder, which is thrown away.
    """
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if local.is_absolute():
        return str(local)
    in_a_copy = "/runtime_resources/working_dir_files/" in str(Path.cwd())
    require(not in_a_copy, f"{path}: a submitted job runs in a copy of its folder; give an absolute path, or a URL")
    return str(local.resolve())


def storage_path(name: str) -> Path | UPath:
    """A local path, or one on object storage, which has the same methods. Listings of the latter are not cached.

    Raises:
        ConfigError: no installed package can read such URLs.
    """
    if "://" not in name:
        return Path(name)
    scheme = name.split("://")[0]
    require(scheme not in ("file", "local", "memory"), f"{name}: give a folder's path, or the URL of object storage")
    try:
        path = UPath(name, use_listings_cache=False)
        path.fs  # noqa: B018 (made here, so that a missing package is told here)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{name}: {one_line(error)} (pip install s3fs for s3://, gcsfs for gs://)") from None
    return path


def dataset_reference(name: str) -> tuple[str, str, str] | None:
    """Splits DATASET:CONFIG:SPLIT into its three parts; None for a glob or URL."""
    match = _DATASET_REFERENCE.fullmatch(name)
    return match and match.groups()


def absolute_data(name: str) -> str:
    """Makes a glob, or the folder in a dataset reference, absolute; URLs and hub ids stay as they are.

    Raises:
        ConfigError: a path that `absolute` refuses.
    """
    reference = dataset_reference(name)
    if reference is None:
        return absolute(name)
    dataset, config, split = reference
    on_hub = is_hub_id(dataset) and not Path(dataset).is_dir()
    return f"{dataset if on_hub else absolute(dataset)}:{config}:{split}"


@dataclass_transform(field_specifiers=(field,))
def settings(section: str = "") -> Callable[[type[T]], type[T]]:
    """Makes a class a dataclass whose values pydantic checks: only the declared keys, types and ranges pass.

    A bad value raises a ConfigError of one line, which names the key below `section`. Fields can be set later, unchecked.
    """

    def decorate(cls: type[T]) -> type[T]:
        cls = pydantic.dataclasses.dataclass(cls, config=ConfigDict(extra="forbid", strict=True))
        validate = cls.__init__

        @functools.wraps(validate)
        def __init__(self, *args, **kwargs):
            try:
                validate(self, *args, **kwargs)
            except pydantic.ValidationError as error:
                raise ConfigError(_refusal(error.errors(), section and f"{section}.")) from None

        cls.__init__ = __init__
        return cls

    return decorate


def _refusal(errors: list[dict], prefix: str) -> str:
    """The first of pydantic's errors, in one line. Of a union's errors, those of the member that comes closest to the value."""
    first = max(errors, key=lambda error: len(error["loc"]))
    if first["type"] == "value_error":  # a __post_init__ raised it
        return str(first["ctx"]["error"])
    key = prefix + ".".join(part for part in first["loc"] if isinstance(part, str) and not _UNION_MEMBER.match(part))
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {key}"
    alike = [error for error in errors if error["loc"][0] == first["loc"][0] and len(error["loc"]) == len(first["loc"])]
    wanted = " or ".join(_WANTED.get(error["type"], error["msg"]).format(**error.get("ctx", {})) for error in alike)
    remedy = f"; write {key}=[{first['input']}]" if first["type"] == "list_type" else ""
    return f"{key} must be {wanted.replace(chr(39), '')}, not {first['input']!r}{remedy}"


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]  # a run may be named 2026
AtLeastOne = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ProjectorType = Literal["mlp", "stack", "swiglu", "moe", "conv"]
LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ColumnName = Literal["ID", "wav", "text", "spk_id", "duration", "source"]  # see data/columns.py
Weight = Annotated[float, Field(ge=0.01, le=100)]  # beyond these a slip is likelier than a wish


@settings("model")
class ModelConfig:
    """The two frozen backbones and the projector between them."""

    audio_model_id: Text = "openai/whisper-large-v3-turbo"  # the encoder: a Whisper checkpoint's hub id or local folder
    text_model_id: Text = "HuggingFaceTB/SmolLM3-3B"  # the decoder: SmolLM3, Llama, Qwen2, Qwen3; hub id or folder
    projector_type: ProjectorType = "mlp"  # the trained part: mlp (the seed's), stack, swiglu, moe, conv; see projectors.py
    frames_per_token: AtLeastOne | None = None  # encoder frames (50/s) in an audio token; null: mlp 2, the others 4
    encoder_window: Literal["full", "trimmed"] = "full"  # full: clips padded to 30 s, as Whisper was trained | trimmed: unpadded
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the backbones; the projector is always float32
    attn_implementation: Text = "sdpa"  # the decoder's attention when it transcribes; training uses its own, see layers.py
    max_new_tokens: AtLeastOne = 256  # the longest transcript, in tokens


@settings("data")
class DataConfig:
    """The Parquet shards, in LoquaciousSet's columns, and how an epoch is laid out.

    Data are named by DATASET:CONFIG:SPLIT, DATASET being a hub id or a folder of that layout, or by a glob, local or a URL.
    """

    # one dataset, or several with weights, {A: 2, B: 0.5}: an epoch reads A twice, and a different half of B each time
    train: Text | dict[Text, Weight] = "speechbrain/LoquaciousSet:small:train"
    dev: Text = "speechbrain/LoquaciousSet:small:dev"  # the dataset that validations read
    # the files' names of columns -> ours (ID, wav, text, spk_id, duration, source), {audio: wav, sentence: text}
    columns: dict[Text, ColumnName] = field(default_factory=dict)
    # how often an epoch takes each row of a source, {yodas: 0.5}; see "Sources" in ray_jobs/README.md
    source_weights: dict[Text, Annotated[float, Field(ge=0, le=100)]] = field(default_factory=dict)
    truecase: bool = False  # gives labels without case the case of written English, see labels.py
    truecase_text: Text | None = None  # a file of ordinary English, local or a URL, that shows which words are names
    max_train_rows: AtLeastOne | None = None  # takes only the first rows of each training dataset
    max_dev_rows: AtLeastOne = 256  # the first rows of the dev shards, for the validation loss
    max_wer_rows: NonNegativeInt = 64  # the first of those, for the validation WER, which is far slower; 0 leaves it out
    # longer clips, and clips over the encoder's window, are rejected and counted, never cut
    max_duration_s: Annotated[float, Field(ge=0.01)] = 30.0
    batch_rows: AtLeastOne = 32  # the global batch, whatever the number of workers; rejects and source_weights change it
    steps_per_window: AtLeastOne = 16  # steps whose rows are read and shuffled together
    # audio that a worker computes at a time, counting 2 s more for each clip; null: as much as its memory allows
    micro_batch_s: Annotated[float, Field(ge=1)] | None = None
    silence_share: ShareBelowOne = 0.0  # synthetic clips of silence or noise with an empty label, per planned row
    max_reject_share: Share = 0.5  # the run stops if more of the last rows (500 or more) are rejected; 1: it never stops
    decode_label: Text | None = None  # audio is decoded only on nodes whose label `ray-subcluster` has this value

    def __post_init__(self):
        require(bool(self.train), "data.train names no dataset")
        require(self.truecase or self.truecase_text is None, "data.truecase_text is of no use without data.truecase=true")

    @property
    def train_weights(self) -> dict[str, float]:
        """Every training dataset and its weight."""
        return self.train if isinstance(self.train, dict) else {self.train: 1.0}

    def with_absolute_paths(self) -> DataConfig:
        """A copy in which every local path is absolute."""
        train = {absolute_data(name): weight for name, weight in self.train_weights.items()}
        first = train if isinstance(self.train, dict) else next(iter(train))
        text = self.truecase_text and absolute(self.truecase_text)
        return dataclasses.replace(self, train=first, dev=absolute_data(self.dev), truecase_text=text)


@settings("augment")
class AugmentConfig:
    """Random changes that make training clips harder, see augment.py. Validation and evaluation hear clips as they are."""

    # one is drawn for each clip, such as [0.9, 1.0, 1.1]
    speed_factors: list[Annotated[float, Field(ge=0.5, le=2)]] = field(default_factory=list)
    noise_share: Share = 0.0  # share of the clips that get white or brown noise
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 20.0])  # lowest and highest ratio of speech to that noise
    time_masks: NonNegativeInt = 0  # spans of time hidden in each clip; the widths below are SpecAugment's LD (Park et al. 2019)
    time_mask_frames: NonNegativeInt = 100  # the widest span, in mel frames of 10 ms; never over a fifth of the clip
    frequency_masks: NonNegativeInt = 0  # bands of mel bins hidden in each clip
    frequency_mask_mels: NonNegativeInt = 27  # the widest band, in mel bins (LD has 80 in all, Whisper 80 or 128)

    def __post_init__(self):
        ordered = len(self.noise_snr_db) == 2 and self.noise_snr_db[0] <= self.noise_snr_db[1]
        require(ordered, f"augment.noise_snr_db must be [lowest, highest], not {self.noise_snr_db}")

    @property
    def is_on(self) -> bool:
        """Whether any clip is changed."""
        return bool(self.speed_factors or self.noise_share or self.time_masks or self.frequency_masks)


@settings("optimizer")
class OptimizerConfig:
    """AdamW with a linear warm-up."""

    learning_rate: NonNegativeFloat = 3e-4  # the highest, at the end of the warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up: cosine falls to zero at the last step
    warmup_steps: NonNegativeInt = 50  # steps over which the learning rate rises to its highest
    weight_decay: NonNegativeFloat = 0.1  # of AdamW
    beta_1: ShareBelowOne = 0.9  # decay of AdamW's mean of the gradients
    beta_2: ShareBelowOne = 0.95  # decay of AdamW's mean of their squares
    max_grad_norm: NonNegativeFloat = 1.0  # gradients are clipped to this norm


@settings("lora")
class LoraConfig:
    """Low-rank matrices beside the decoder's linear layers, which train with the projector, see lora.py."""

    rank: NonNegativeInt = 0  # of the matrices; 0 leaves the decoder as it is
    alpha: Annotated[float, Field(gt=0)] = 32.0  # what they give is added with a factor of alpha / rank
    targets: list[LoraTarget] = field(default_factory=lambda: list(get_args(LoraTarget)))  # the layers that get some
    learning_rate: NonNegativeFloat | None = None  # their highest; must be set where they train

    def __post_init__(self):
        require(
            self.rank == 0 or self.learning_rate is not None, "lora.rank trains the decoder: set lora.learning_rate (say 1e-4)"
        )


@settings()
class TrainConfig:
    """One training run. The worker count is the only dial: the result does not depend on it."""

    name: Text = "train"  # the run's folder below runs_dir; the same name resumes the run
    runs_dir: Text = "runs"  # a folder that all nodes share, or a URL: s3://bucket/prefix, gs://
    seed: NonNegativeInt = 42  # of the projector's first weights, the order of the rows, and augmentation
    init_from: Text | None = None  # a run, or a saved model, whose trained weights are the first of this one
    num_steps: AtLeastOne = 500  # optimizer steps of the whole run
    ctc_weight: NonNegativeFloat = 0.0  # of CTC beside the decoder's loss, say 0.3: a projector listens far sooner, see ctc.py
    ctc_alone_steps: NonNegativeInt = 0  # the first steps, in which CTC trains the projector without the decoder: far faster
    num_workers: AtLeastOne = 1  # training processes, one for each GPU
    min_workers: AtLeastOne | None = None  # the fewest to go on with where nodes are lost; null: num_workers exactly
    use_gpu: bool = True  # false trains on CPUs
    threads_per_worker: AtLeastOne = 1  # CPU threads of a worker, where there is no GPU
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2  # ZeRO shares out: 1 the optimizer, 2 gradients too, 3 backbones too
    compile: bool = True  # compiles the layers of the backbones, where there is a GPU
    fp8: bool = False  # computes the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    # host memory of each worker for encoder frames, which saves time where epochs repeat: 1 GiB holds 2.3 hours
    cache_features_gib: NonNegativeFloat = 0.0
    eval_every: AtLeastOne = 100  # steps between validations
    checkpoint_every: AtLeastOne = 100  # steps between checkpoints; a validation that is the best so far makes one too
    keep_checkpoints: AtLeastOne = 2  # how many of the best are kept, beside the last one
    export: Literal["best", "last"] = "best"  # the checkpoint for model/; best: by WER on the dev clips, or loss without WER
    # the run ends after so many validations in a row without a better one; null: it never ends early
    early_stopping_patience: AtLeastOne | None = None
    log_every: AtLeastOne = 10  # steps between logged lines
    # where metrics go besides metrics.jsonl: any of tensorboard, wandb, mlflow; see tracking.py
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=lambda: ["tensorboard"])
    max_loss_rise: NonNegativeFloat = 3.0  # nats per token: a loss this far above the lowest since the start ends the run
    # how long a worker may take over one thing before it counts as hung, and all workers start again
    watchdog_timeout_s: Annotated[float, Field(ge=1)] = 900.0
    max_failures: NonNegativeInt = 3  # restarts from the last checkpoint before the run gives up
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        kept, sharded, varied = bool(self.cache_features_gib), self.zero_stage == 3, self.augment.is_on
        require(not (kept and sharded), "cache_features_gib skips the encoder, which zero_stage=3 shares out: choose one")
        require(not (kept and varied), "cache_features_gib keeps a clip's frames, but augment changes it every epoch: choose one")
        require(self.ctc_weight > 0 or not self.ctc_alone_steps, "ctc_alone_steps trains by CTC: it wants ctc_weight, say 0.3")
        require(not (self.fp8 and sharded), "fp8=true keeps the backbones whole: it wants zero_stage 0, 1 or 2")
        in_bfloat16 = self.use_gpu and self.model.dtype == "bfloat16"
        require(in_bfloat16 or not self.fp8, "fp8=true runs beside bfloat16 on a GPU: it wants model.dtype=bfloat16")
        secret = "://" in self.runs_dir and "@" in self.runs_dir
        require(not secret, "runs_dir holds a user or key, which the run would keep: leave it to the environment (AWS_PROFILE)")
        storage_path(self.runs_dir)
        too_few = f"data.batch_rows={self.data.batch_rows} is less than a row for each of num_workers={self.num_workers}"
        require(self.data.batch_rows >= self.num_workers, too_few)
        fewest = self.min_workers or 1
        require(fewest <= self.num_workers, f"min_workers={fewest} must not be above num_workers={self.num_workers}")

    @property
    def score_metric(self) -> str:
        """The metric that validations are compared by; lower is better."""
        return "val_wer" if self.data.max_wer_rows else "val_loss"

    @property
    def run_dir(self) -> Path | UPath:
        """The run's folder, local or on object storage."""
        return storage_path(self.runs_dir) / self.name
