"""The settings of the service: what `args` in a Serve config may hold."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class Arguments(BaseModel, extra="forbid"):
    """Lists the settings that `args` in a Serve config may hold."""

    model: str  # folder that `ASRModel.save_pretrained` wrote (relative to where Serve starts), its URL, or a hub id
    device: Literal["cpu", "cuda"] = "cpu"
    fp8: bool = False  # computes the backbones' linear layers in FP8: faster on Hopper GPUs, slightly inexact
    model_name: str = "tiny_audio"  # name that clients call the model by
    max_upload_mib: int = Field(25, ge=1)  # OpenAI's limit
    max_batch_size: int = Field(128, ge=1)  # clips that a replica transcribes together
    max_queued: int = Field(64, ge=1)  # clips waiting for a replica; any more are refused with 429
    max_replicas: int = Field(1, ge=1)
    num_ingresses: int = Field(1, ge=1)  # processes that read and decode uploads; a GPU transcribes as fast as about 4 of them
    num_threads: int = Field(1, ge=1)  # CPU threads of a Transcriber replica, and CPUs reserved for it
    timeout_s: float = Field(60.0, gt=0)  # longest wait for the model's answer, queueing included

    @model_validator(mode="after")
    def _fp8_has_its_gpu(self):
        if self.fp8 and self.device != "cuda":
            raise ValueError("fp8=true computes on GPUs: set device: cuda")
        return self
