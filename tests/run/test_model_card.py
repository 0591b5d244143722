"""A model's card says what the model is, for people and for the hub, and tells neither of them a secret."""

import torch
import yaml

from tiny_audio.config import DataConfig, TrainConfig
from tiny_audio.run.checkpoint import Progress
from tiny_audio.run.model_card import describe_adapter, describe_projector, model_card


def test_a_card_names_the_parts_and_the_data_without_a_secret():
    data = DataConfig(train={"s3://KEY:SECRET@bucket/a/*.parquet": 1.0, "https://host/b.parquet?Signature=SECRET": 0.5})
    progress = Progress(step=20, num_rows=1640, audio_s=5400.0, scores={"val_loss": 0.25})
    projector = describe_projector("stack", 4, [torch.zeros(3, 400)])
    card = model_card(TrainConfig(name="run", data=data), projector, describe_adapter(None), progress)
    assert "SECRET" not in card
    assert "| s3://bucket/a/*.parquet, https://host/b.parquet: 1,640 rows, 1.5 hours with repeats |" in card
    assert "| stack, 1,200 parameters, 12.5 tokens a second |" in card
    assert "| loss 0.25 |" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["openai/whisper-large-v3-turbo", "HuggingFaceTB/SmolLM3-3B"]
