"""Each name of others that they do not document, looked for in the installed versions: at an upgrade, this file fails first."""

import dataclasses
import inspect
import mmap
import os
import re
from pathlib import Path

import pytest
import ray
import torch
from transformers import PreTrainedModel, SmolLM3Config, SmolLM3ForCausalLM, WhisperConfig

from tests.conftest import ROOT, TINY_SMOLLM3, TINY_WHISPER
from tiny_audio import ray_names, transformers_names

RAY = Path(ray.__file__).parent


def test_rays_environment_variables():
    """By Ray's own constants; its core's are looked up in its binaries."""
    from ray._common.utils import get_default_system_temp_dir
    from ray._private import ray_constants
    from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
    from ray.train.v2._internal import constants

    assert constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR == ray_names.START_TIMEOUT
    assert constants.WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR == ray_names.HEALTH_TIMEOUT
    assert {constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR, constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR} < set(
        os.environ
    )  # conftest.py
    assert ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE == ray_names.SERVER_ADDRESS
    assert AUTH_MODE_ENV_VAR == ray_names.AUTH_MODE
    assert ray_names.FILES_FOLDER in inspect.getsource(get_default_system_temp_dir)
    of_serve = (RAY / "serve/_private/constants.py").read_text()
    settings = ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"]
    settings += ["RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"]
    for name in (*settings, ray_names.PROXY_CALLBACK):
        assert name in of_serve
    core = [ray_names.CORE_LOG_LEVEL, ray_names.MAX_STARTING_WORKERS.removeprefix("RAY_")]
    for name, binary in zip(core, ("_raylet.so", "core/src/ray/raylet/raylet"), strict=True):
        with (RAY / binary).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
            assert code.find(name.encode()) >= 0, name


def test_serves_proxies_take_hints_by_headers_and_set_their_sockets_in_one_function():
    from ray.serve._private import constants, http_util

    hints = (constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER)
    assert tuple(hint.encode() for hint in hints) == ray_names.PROXY_HINTS
    assert "set_socket_reuse_port(sock)" in inspect.getsource(http_util.start_asgi_http_server)


def test_an_ingress_asks_a_proxy_by_one_property_of_a_request():
    from ray.serve._private import common, replica

    assert isinstance(common.StreamingHTTPRequest.receive_asgi_messages, property)
    assert "request.receive_asgi_messages" in inspect.getsource(replica)
    assert common.StreamingHTTPRequest({"type": "http"}, proxy_actor_name="x").asgi_scope == {"type": "http"}


def test_serves_proxies_can_be_started_and_drained():
    from ray.serve._private.http_util import RequestIdMiddleware
    from ray.serve._private.proxy import HTTPProxy, ProxyActor

    proxy = ProxyActor.__ray_metadata__.modified_class
    given = {"http_options", "grpc_options", "node_id", "node_ip_address", "logging_config"}
    assert given < inspect.signature(proxy).parameters.keys()
    assert list(inspect.signature(proxy.update_draining).parameters)[1] == "draining"
    assert {"ready", "is_drained"} < vars(proxy).keys()
    assert {"_is_draining", "_ongoing_requests_start", "_ongoing_requests_end"} < set(dir(HTTPProxy))
    assert RequestIdMiddleware("the proxy's application")._app == "the proxy's application"


def test_serves_routers_are_told_of_each_request_twice():
    from ray.serve._private import router
    from ray.serve.request_router import RequestRouter

    assert {"initialize_state", "choose_replicas", "on_send_request", "on_request_completed"} < vars(RequestRouter).keys()
    source = inspect.getsource(router)
    assert ".on_send_request(" in source
    assert ".on_request_completed(" in source


def test_rays_process_titles():
    """A process's title is `ray::` and the name of its actor's class."""
    from ray.data._internal.iterator.stream_split_iterator import SplitCoordinator
    from ray.train.v2._internal.execution.controller.controller import TrainController
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    assert RayTrainWorker.__name__ == ray_names.TRAIN_WORKER
    assert TrainController.__name__ == ray_names.TRAIN_CONTROLLER
    assert SplitCoordinator.__ray_actor_class__.__name__ == ray_names.DATA_SPLITTER


def test_what_rays_commands_print():
    from ray._private import ray_constants

    assert ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT == ray_names.AGENT_PORT
    assert ray_names.NO_AGENT.decode() in (RAY / "dashboard/modules/job/job_head.py").read_text()
    assert ray_names.SUBMITTED.decode() in (RAY / "dashboard/modules/job/cli.py").read_text()
    line = b"2026-11-25 02:20:11,345\tINFO dashboard_sdk.py:338 -- Uploading package gcs://_ray_pkg_1.zip.\n"
    assert ray_names.OWN_LINE.match(line)
    printed = (RAY / "_private/internal_api.py").read_text()
    for pattern in (ray_names.STORE_USED_MIB, ray_names.SPILLED_MIB):
        assert pattern.replace(r"(\d+)", "{}") in printed


def test_rays_failures_and_splits():
    """What the watchdog reads of failures, and the split that is given functions in place of datasets."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import SUBCLUSTER_LABEL_KEY
    from ray.train import ControllerError, DataConfig
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    assert ray_names.is_lost_process(WorkerHealthCheckFailedError("gone", RuntimeError("node died")))
    assert not ray_names.is_lost_process(RuntimeError("out of memory"))
    assert ControllerError(ValueError("no rows")).controller_failure.args == ("no rows",)
    assert SUBCLUSTER_LABEL_KEY == ray_names.SUBCLUSTER
    assert ray._raylet.RAY_NODE_GROUP_KEY == ray_names.NODE_GROUP
    assert list(inspect.signature(DataConfig.configure).parameters)[:3] == ["self", "datasets", "world_size"]
    assert {"execution_options", "enable_shard_locality"} <= inspect.signature(DataConfig).parameters.keys()
    settings = {field.name for field in dataclasses.fields(ray.data.DataContext)}
    assert {"enable_progress_bars", "execution_no_progress_timeout_s", "target_max_block_size"} <= settings


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_optimizers(one_worker, stage):
    """What zero.py reads and calls of them to put AdamW's moments back; and the mark that keeps its collectives uncompiled."""
    import deepspeed

    from tiny_audio.config import OptimizerConfig
    from tiny_audio.training.zero import Engine

    assert isinstance(deepspeed.ops.__compatible_ops__, dict)
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert isinstance(torch._functorch.config.recompute_views, bool)
    layer = torch.nn.Linear(3, 2)
    engine = Engine(layer, [dict(layer.named_parameters())], OptimizerConfig(), stage)
    flat = engine.zero.fp32_partitioned_groups_flat if stage == 3 else engine.zero.single_partition_of_fp32_groups
    assert all(part.dtype == torch.float32 for part in flat)
    assert sum(part.numel() for part in flat) >= 8
    assert stage == 3 or callable(engine.zero._lazy_init_hp_params_optimizer_state)
    assert stage < 3 or layer.weight.ds_shape == (2, 3)


def test_transformers_registries():
    """The modules that the Auto classes and pipelines are found in, and the table of tasks."""
    from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq
    from transformers.pipelines import PIPELINE_REGISTRY, pipeline

    from tiny_audio.model.pipeline import TASK, SpeechPipeline

    configs, models, pipelines = transformers_names.REGISTRIES
    assert AutoConfig.__module__ == configs
    assert AutoModel.__module__ == AutoModelForSpeechSeq2Seq.__module__ == models
    assert pipeline.__module__ == pipelines
    assert PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] is SpeechPipeline
    assert hasattr(PreTrainedModel, "_from_config")  # model/auto.py hands it on
    assert AutoModelForSpeechSeq2Seq in PIPELINE_REGISTRY.supported_tasks[TASK]["pt"]
    assert {"_load_tokenizer", "_load_feature_extractor"} <= vars(SpeechPipeline.__base__).keys()
    assert "self._generation_defaults" in inspect.getsource(SpeechPipeline.__base__.__base__.__base__)


def test_transformers_modules():
    """The parts of layers that `model/layers.py` and `model/asr.py` compute with, and what the configs and masks say."""
    encoder = transformers_names.whisper_encoder_class()(WhisperConfig(**TINY_WHISPER))
    decoder = SmolLM3ForCausalLM(SmolLM3Config(**TINY_SMOLLM3))
    projections = ("q_proj", "k_proj", "v_proj")
    parts = {
        encoder: ("conv1", "conv2", "embed_positions", "layers", "layer_norm"),
        encoder.layers[0]: ("self_attn", "self_attn_layer_norm", "final_layer_norm", "fc1", "fc2"),
        encoder.layers[0].self_attn: (*projections, "out_proj", "head_dim"),
        decoder.model: ("embed_tokens", "rotary_emb", "layers", "norm"),
        decoder.model.layers[0]: ("self_attn", "input_layernorm", "post_attention_layernorm", "mlp"),
        decoder.model.layers[0].self_attn: (*projections, "o_proj", "head_dim", "use_rope"),
        decoder.model.layers[0].mlp: ("gate_proj", "up_proj", "down_proj"),
    }
    for module, names in parts.items():
        assert [name for name in names if not hasattr(module, name)] == [], type(module).__name__
    assert transformers_names.attention_of(SmolLM3Config(attn_implementation="eager")) == "eager"
    assert [list(inspect.signature(function).parameters)[:3] for function in transformers_names.unpadding()] == [
        ["query_layer", "key_layer", "value_layer"],
        ["hidden_states", "attention_mask", "unused_mask"],
        ["hidden_states", "indices", "batch"],
    ]


def test_torchs_flash_attention_takes_a_length_for_each_clips_keys():
    arguments = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    assert {"seqused_k", "window_size_left", "window_size_right"} <= arguments


def test_private_names_are_in_their_files_alone():
    names = (
        r"""\._internal|\._private|\._attn_implementation|_generation_defaults|torch\._(?!_)|RayTrainWorker|"RAY_(?!ADDRESS)"""
    )
    homes = {"ray_names.py", "transformers_names.py", "zero.py"}
    users = {
        str(path.relative_to(ROOT)): match[0]
        for folder in ("tiny_audio", "ray_jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in homes and (match := re.search(names, path.read_text()))
    }
    assert users == {}
