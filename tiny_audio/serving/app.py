"""OpenAI's transcription API over HTTP, on Ray Serve: `import_path: tiny_audio.serving.app:build` in a Serve config.

A CPU `Ingress` reads multipart uploads, decodes them to int16 clips and answers; `Transcriber` replicas hold the model.
"""

from ray import serve

from tiny_audio.serving.arguments import Arguments
from tiny_audio.serving.ingress import Ingress
from tiny_audio.serving.replica import Transcriber
from tiny_audio.storage import require_model


def build(args: Arguments) -> serve.Application:
    """Builds the application that Serve runs, the ingress bound to the model's replicas; `args` is the config's."""
    in_flight = 2 * args.max_batch_size  # clips in a replica: those that wait there join as soon as another clip is done
    transcriber = Transcriber.options(
        ray_actor_options={"num_cpus": args.num_threads, "num_gpus": int(args.device == "cuda")},
        max_ongoing_requests=in_flight,
        max_queued_requests=args.max_queued,
        autoscaling_config={"max_replicas": args.max_replicas, "target_ongoing_requests": args.max_batch_size},
    ).bind(require_model(args.model), args.device, args.num_threads, args.max_batch_size, args.fp8)
    return Ingress.options(
        # more clips than the replicas and their queue hold, so that it refuses the rest itself, in OpenAI's shape
        max_ongoing_requests=args.max_replicas * in_flight + args.max_queued + 32,
        num_replicas=args.num_ingresses,
    ).bind(transcriber, args)
