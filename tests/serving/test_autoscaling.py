"""Replicas of the model come with the audio in hand and go with it, to none where that is asked for."""

import time
from collections.abc import Iterator

import pytest
from ray import serve
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from tests.serving.conftest import ARGS, TONES, transcribe
from tests.serving.test_change import steady_load
from tiny_audio.config import ConfigError
from tiny_audio.lab.local_nodes import wait_for
from tiny_audio.serving.app import build
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.autoscaling import AudioPolicy


def context(replicas: list[tuple[float, int]], queued: float) -> AutoscalingContext:
    """What Serve knows of a deployment: the seconds of audio and the clips of each replica, and the requests before them."""
    audio_s, clips = ({name: reported[i] for name, reported in enumerate(replicas)} for i in (0, 1))
    unused = dict.fromkeys(("deployment_id", "app_name", "raw_metrics", "last_scale_up_time", "last_scale_down_time", "config"))
    return AutoscalingContext(
        **unused,
        deployment_name="Transcriber",
        current_num_replicas=len(replicas),
        target_num_replicas=len(replicas),
        running_replicas=list(range(len(replicas))),
        total_num_requests=sum(clips.values()) + queued,
        total_queued_requests=queued,
        aggregated_metrics={"audio_s": audio_s, "clips": clips} if replicas else {},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        current_time=0.0,
    )


@pytest.mark.parametrize(
    ("replicas", "queued", "wanted"),
    [
        ([(0.0, 0)], 0, 0.0),
        ([(150.0, 10)], 0, 1.5),
        ([(150.0, 10), (50.0, 10)], 0, 2.0),
        ([(150.0, 10), (50.0, 10)], 10, 3.0),  # those that wait before the replicas are taken to be as long as those in them
        ([(4.0, 40)], 40, 2.0),  # short clips fill places, not time
        ([(0.0, 0)], 4, 0.1),  # nothing is known of their length yet
        ([], 4, 0.1),
    ],
)
def test_replicas_follow_the_audio_in_hand(replicas, queued, wanted):
    sent = AutoscalingPolicy(policy_function=AudioPolicy, policy_kwargs={"target_audio_s": 100.0, "target_clips": 40})
    policy = sent.get_policy()(**sent.policy_kwargs)  # as the controller gets it
    assert policy(context(replicas, queued)) == (pytest.approx(wanted), {})


def test_bounds_that_cross_are_refused():
    with pytest.raises(ConfigError, match="min_replicas=2 is above max_replicas=1"):
        Arguments(model="m", min_replicas=2)


def num_running(deployment: str) -> int:
    return serve.status().applications["tiny_audio"].deployments[deployment].replica_states.get("RUNNING", 0)


@pytest.fixture
def scaling(client, alone, saved_model, second_model) -> Iterator[None]:
    """Lets the service scale fast between no replica and two, behind two ingresses."""
    bounds = {"min_replicas": 0, "max_replicas": 2, "target_audio_s": 2.0, "num_ingresses": 2}
    serve.run(
        build({"model": saved_model} | ARGS | bounds | {"upscale_delay_s": 1.0, "downscale_delay_s": 2.0}), name="tiny_audio"
    )
    yield
    serve.run(build({"model": saved_model, "models": {"second": second_model}} | ARGS), name="tiny_audio")


@pytest.mark.slow
def test_load_raises_the_replicas_and_silence_lowers_them_to_none_and_back(scaling, client, alone):
    assert (num_running("Ingress"), num_running("Transcriber")) == (2, 1)
    with steady_load(client, alone, num_clients=6):
        wait_for(lambda: num_running("Transcriber") == 2, "a second replica", 120, poll_s=0.2)
    for num_left in (1, 0):
        wait_for(lambda num=num_left: num_running("Transcriber") == num, f"{num_left} replicas", 120, poll_s=0.2)
    started = time.monotonic()
    assert transcribe(client, TONES[0]).text == alone[0]
    print(f"the first answer after none took {time.monotonic() - started:.1f} s")
    assert num_running("Transcriber") == 1
