"""What we use of Ray that it does not document: its names may change with any version, and they change here alone.

`tests/test_private_names.py` looks for each in the installed Ray.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# The titles of processes, which Ray has no other way to tell apart: `ray::` and an actor's class or a task's function.
ANY_WORKER = "ray::"
TRAIN_WORKER = "RayTrainWorker"
TRAIN_CONTROLLER = "TrainController"
DATA_SPLITTER = "SplitCoordinator"

# Environment variables. Ray Train takes its timeouts from these two alone.
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
HEALTH_TIMEOUT = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
SERVER_ADDRESS = "RAY_API_SERVER_ADDRESS"  # of the job server; Ray Train would search for it
CORE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # `ray.init(logging_level=...)` quietens Ray's Python alone
MAX_STARTING_WORKERS = "RAY_worker_maximum_startup_concurrency"
FILES_FOLDER = "RAY_TMPDIR"  # of `ray start --temp-dir`, for all commands
AUTH_MODE = "RAY_AUTH_MODE"

# The label by which Ray Data counts a group of nodes as its own; `ExecutionOptions.label_selector` selects by it.
SUBCLUSTER = "ray-subcluster"
NODE_GROUP = "ray.io/node-group"  # the label of nodes that a launcher or KubeRay starts: their kind in its config

# What Ray's commands print, which have no other output.
AGENT_PORT = 52365  # of the agent that runs jobs: the default, and `ray.init` takes no other
NO_AGENT = b"No available agent"  # why a young cluster refuses a job
SUBMITTED = b"submitted successfully"
OWN_LINE = re.compile(rb"[\d-]+ [\d:,]+\t(INFO|WARNING|SUCC) \w+\.py:\d+ -- |Running entrypoint for job |\[[^]]+\] logging\.cc")
STORE_USED_MIB, SPILLED_MIB = r"Plasma memory usage (\d+) MiB", r"Spilled (\d+) MiB"  # of `ray memory --stats-only`


# The variable that names what Serve's proxies call as they start. By the headers, Serve's balancer tells a proxy how to treat a
# request.
PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PROXY_HINTS = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
NO_TIMEOUT = (PROXY_HINTS[0], b"0")


def refuse_shared_ports() -> list[socket.socket]:
    """Makes Serve's proxy in this process refuse a port that another server has. Returns a list, which will hold its socket.

    Serve asks Linux to share it, which gives each of the two half of the connections. SO_REUSEADDR stays: a proxy that died
    could not come back while its old connections linger.
    """
    from ray.serve._private import http_util

    sockets = []

    def take_alone(own: socket.socket) -> None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets.append(own)

    http_util.set_socket_reuse_port = take_alone
    return sockets


def start_proxy(index: int, variables: dict[str, str]) -> ActorHandle:
    """Starts a further proxy of Serve's on this node, with the port of Serve's own, which is this process; ends with it.

    Serve's controller does not know it, so Ray starts it again when it dies.

    Args:
        index: tells it from the node's others, in its log's name and its metrics too.
        variables: environment variables beside this process's own.
    """
    import ray
    from ray.serve import context
    from ray.serve._private.constants import ASYNC_CONCURRENCY, SERVE_NAMESPACE
    from ray.serve._private.proxy import ProxyActor
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import LoggingConfig

    own = ray.get_runtime_context()
    return ProxyActor.options(
        name=f"{own.get_actor_name()}-{own.get_actor_id()}-{index}",  # by it, replicas ask for what a WebSocket's client says
        namespace=SERVE_NAMESPACE,
        max_concurrency=ASYNC_CONCURRENCY,
        max_restarts=-1,
        label_selector={ray._raylet.RAY_NODE_ID_KEY: own.get_node_id()},
        runtime_env={"env_vars": variables},
    ).remote(
        context._get_global_client().http_config,
        gRPCOptions(),
        node_id=own.get_node_id(),
        node_ip_address=f"{ray.util.get_node_ip_address()}-{index}",
        logging_config=LoggingConfig(),
    )


def spare_calls_to_proxies(key: str) -> None:
    """Has an ingress in this process not ask a proxy for the messages of requests whose ASGI scope has `key`.

    Serve looks the proxy up and asks it twice for each request, the second time to hear that the client has left. It cancels
    the request then, too.
    """
    from ray.serve._private.common import StreamingHTTPRequest

    of_serve = StreamingHTTPRequest.receive_asgi_messages

    async def no_message(metadata) -> bytes:
        return await asyncio.Event().wait()

    def receive(request) -> Callable:
        return no_message if key in request.asgi_scope else of_serve.fget(request)

    StreamingHTTPRequest.receive_asgi_messages = property(receive)


def is_draining(app) -> bool:
    """Whether Serve sends no new requests to a proxy, whose application is `app`, and waits for the end of those that it has."""
    return app._app._is_draining()


@contextmanager
def counted_as_busy(app) -> Iterator[None]:
    """Counts a request that there is not, so that Serve does not end a proxy, whose application is `app`, while it drains."""
    app._app._ongoing_requests_start()
    try:
        yield
    finally:
        app._app._ongoing_requests_end()


def is_lost_process(failure: Exception) -> bool:
    """Whether a Train worker failed because its process died or did not answer: Ray's class for that is not public."""
    return hasattr(failure, "health_check_failure")
