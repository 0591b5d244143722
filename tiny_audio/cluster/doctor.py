"""Examines a cluster with the config of a planned training, to find what would fail, wait for ever or be slow."""

from __future__ import annotations

from collections.abc import Callable

from tiny_audio.cluster import checks
from tiny_audio.cluster.all_reduce import check_all_reduce
from tiny_audio.cluster.findings import Finding, fail, ok
from tiny_audio.cluster.probe import NoAnswer, examine_nodes
from tiny_audio.config import ConfigError, TrainConfig
from tiny_audio.data.footers import list_shards, read_footers
from tiny_audio.model.decoder import require_decoder
from tiny_audio.model.encoder import require_encoder
from tiny_audio.run.tracking import require_trackers
from tiny_audio.storage import with_absolute_paths

PLACES_TIMEOUT_S = 900.0  # for GPU nodes that an autoscaler has to start first


def _attempt(check: str, works: str, *calls: Callable[[], object]) -> list[Finding]:
    """Turns each ConfigError into a finding, with the remedy after the message's semicolon; makes an OK one if there is none."""
    findings = []
    for call in calls:
        try:
            call()
        except ConfigError as error:
            detail, _, remedy = str(error).partition("; ")
            findings.append(fail(check, "driver", detail, remedy or "mend the config, or what it names"))
    return findings or [ok(check, works, "driver")]


def check_inputs(config: TrainConfig) -> list[Finding]:
    """Checks what a training checks before it starts Ray: data, backbones, trackers."""
    data, model = config.data, config.model
    trains = [lambda name=name: list_shards(name) for name in data.train_weights]
    return [
        *_attempt("data", "the shards are there", *trains, lambda: read_footers(list_shards(data.dev), data.max_dev_rows)),
        *_attempt(
            "backbones",
            f"{model.audio_model_id} and {model.text_model_id}",
            lambda: require_encoder(model.audio_model_id),
            lambda: require_decoder(model.text_model_id),
        ),
        *_attempt("trackers", ", ".join(config.trackers) or "none", lambda: require_trackers(config.trackers)),
    ]


def examine(
    config: TrainConfig,
    start_ray: Callable[[], None],
    say: Callable[[str], None],
    places_timeout_s: float = PLACES_TIMEOUT_S,
) -> list[Finding]:
    """Examines driver, nodes and network; returns what it finds, good and bad, without training.

    Args:
        start_ray: joins the cluster, or starts one here.
        say: takes a line on what is done next.
        places_timeout_s: how long to wait for the workers' places.
    """
    config = with_absolute_paths(config)
    say("checking the data, the backbones and the trackers, as seen from the driver")
    findings = check_inputs(config)
    start_ray()
    backbones = [config.model.audio_model_id, config.model.text_model_id]
    places = check_all_reduce(config, places_timeout_s, say)  # first: it makes an autoscaler start the nodes
    try:
        nodes = examine_nodes(config.runs_dir, backbones, say)
    except NoAnswer as error:
        remedy = "restart Ray there, or take the node away; logs/raylet.out in its session's folder may say why"
        return [*findings, fail("nodes", "cluster", str(error), remedy), *places]
    return [
        *findings,
        *checks.check_versions(nodes),
        *checks.check_devices(nodes, config),
        *checks.check_places(nodes, config),
        *checks.check_names(nodes),
        *checks.check_ports(nodes),
        *checks.check_clocks(nodes),
        *checks.check_storage(nodes, config.runs_dir),
        *checks.check_weights(nodes, config),
        *checks.check_memory(nodes),
        *places,
    ]
