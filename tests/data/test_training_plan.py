"""What a run follows from is in its identity, whole: a run never goes on under another plan."""

from dataclasses import fields, make_dataclass, replace

import pytest

from tests.conftest import DECODER, ENCODER, plan_of
from tiny_audio.config import AugmentConfig, ConfigError
from tiny_audio.data.labels import Truecaser
from tiny_audio.data.plan import RowGroup
from tiny_audio.data.training_plan import TrainingPlan
from tiny_audio.run.checkpoint import Progress, checkpoint_folder, require_same_plan, save_checkpoint, state_bytes

GROUPS = (RowGroup("/here/a.parquet", 0, 5, "/here/a.parquet"), RowGroup("/here/b.parquet", 0, 7, "/here/b.parquet", 0.5))
WEIGHTS = {"/here/a.parquet": 1.0, "/here/b.parquet": 0.5}
PLAN = plan_of(GROUPS, dataset_weights=WEIGHTS, source_weights={"yodas": 0.5, "all": 2.0}, truecaser=Truecaser({}, "names.txt"))
CHANGES = {
    "groups": GROUPS[:1],
    "dataset_weights": {"/here/a.parquet": 1.0, "/here/b.parquet": 2.0},
    "source_weights": {"yodas": 0.25, "all": 2.0},
    "columns": {"audio": "wav"},
    "truecaser": None,
    "augment": AugmentConfig(noise_share=0.5),
    "audio_model_id": "openai/whisper-base",
    "text_model_id": "HuggingFaceTB/SmolLM2-135M",
}


def start(run_dir, plan: TrainingPlan) -> None:
    """Leaves what a run started with this plan leaves."""
    save_checkpoint(checkpoint_folder(run_dir, 2), {}, {}, state_bytes(Progress(step=2, plan=plan.identity())))


def test_the_keys_and_values_are_those_that_checkpoints_have_had_from_the_first():
    """Another key or form of a value would end the resuming of every run there is."""
    assert PLAN.identity() == {
        "seed": 42,
        "batch_rows": 32,
        "steps_per_window": 16,
        "silence_share": 0.0,
        "max_duration_s": 30.0,
        "weights": "1 0.5",
        "source_weights": "all=2 yodas=0.5",
        "truecase": True,
        "truecase_text": "names.txt",
        "num_rows": 12,
        "shards": "67a1c3feb667",
        "audio_model_id": ENCODER,
        "text_model_id": DECODER,
        "augment.speed_factors": [],
        "augment.noise_share": 0.0,
        "augment.noise_snr_db": [5.0, 20.0],
        "augment.time_masks": 0,
        "augment.time_mask_frames": 100,
        "augment.frequency_masks": 0,
        "augment.frequency_mask_mels": 27,
    }


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingPlan)])
def test_a_run_is_refused_under_another_value_of_any_field(tmp_path, name):
    start(tmp_path, PLAN)
    assert require_same_plan(tmp_path, PLAN.identity()).step == 2
    value = CHANGES[name] if name in CHANGES else getattr(PLAN, name) + 1
    with pytest.raises(
        ConfigError, match=rf"{tmp_path}: was started with .*, now it is .*; set it back, or give the run another"
    ):
        require_same_plan(tmp_path, replace(PLAN, **{name: value}).identity())


def test_a_field_that_is_added_is_in_the_identity_by_itself(tmp_path):
    """Whatever a later version adds: runs that were started without it, or with another value, are refused."""
    Wider = make_dataclass("Wider", [("language", str, "en")], bases=(TrainingPlan,), frozen=True)
    wider = Wider(**{field.name: getattr(PLAN, field.name) for field in fields(TrainingPlan)})
    start(tmp_path / "without", PLAN)
    with pytest.raises(ConfigError, match="was started with no language, now it is en; set it back"):
        require_same_plan(tmp_path / "without", wider.identity())
    start(tmp_path / "with", wider)
    require_same_plan(tmp_path / "with", wider.identity())
    with pytest.raises(ConfigError, match="was started with language=en, now it is de; set it back"):
        require_same_plan(tmp_path / "with", replace(wider, language="de").identity())
    with pytest.raises(ConfigError, match="was started with language=en, now it is None; set it back"):
        require_same_plan(tmp_path / "with", PLAN.identity())


def test_data_may_move():
    moved = tuple(replace(group, path=group.path.replace("/here", "/there")) for group in GROUPS)
    assert replace(PLAN, groups=moved).identity() == PLAN.identity()
