"""OpenAI's transcription API over HTTP, on Ray Serve: `import_path: tiny_audio.serving.app:build` in a Serve config.

A CPU `Ingress` reads multipart uploads, decodes them to int16 clips and answers; `Transcriber` replicas hold the model.
"""

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from tiny_audio import config_files
from tiny_audio.serving import serve_run
from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.autoscaling import AudioPolicy
from tiny_audio.serving.ingress import Ingress
from tiny_audio.serving.replica import Transcriber
from tiny_audio.serving.routing import FewestClips
from tiny_audio.storage import require_model


def build(args: dict[str, Any]) -> serve.Application:
    """Builds the application that Serve runs, the ingress bound to the model's replicas; `args` is the config's.

    Raises:
        ConfigError: a key of `args` is unknown, a value out of range, or there is no such model.
    """
    args = serve_run.arguments_of(args) if serve_run.is_serve_run() else config_files.build(Arguments, args)
    siblings = {name: require_model(path) for name, path in args.models.items()}
    in_flight = 2 * args.max_batch_size  # clips in a replica: those that wait there join as soon as another clip is done
    of_both = {
        "max_surge_percent": 100,  # in an update, the new replicas come first
        "graceful_shutdown_timeout_s": args.timeout_s + 10,  # the old ones have as long as a request may take
        "max_constructor_retry_count": 2,  # what does not start will not start the third time
    }
    transcriber = Transcriber.options(
        ray_actor_options={"num_cpus": args.num_threads, "num_gpus": int(args.device == "cuda")},
        max_ongoing_requests=in_flight,
        max_queued_requests=args.max_queued,
        request_router_config=RequestRouterConfig(request_router_class=FewestClips),
        **of_both,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "initial_replicas": None if args.min_replicas else 1,  # a model that does not load is known at the start
            "upscale_delay_s": args.upscale_delay_s,
            "downscale_delay_s": args.downscale_delay_s,
            "policy": {
                "policy_function": AudioPolicy,
                "policy_kwargs": {"target_audio_s": args.target_audio_s, "target_clips": args.max_batch_size},
            },
        },
    ).bind(require_model(args.model), siblings, args.device, args.num_threads, args.max_batch_size, args.fp8)
    # The ingress admits more clips than the replicas and their queue hold, so that it refuses the rest itself, in OpenAI's shape.
    # Realtime sessions have places of their own.
    most = args.max_replicas * in_flight + args.max_queued + 32 + args.max_sessions
    return Ingress.options(max_ongoing_requests=most, num_replicas=args.num_ingresses, **of_both).bind(transcriber, args)
