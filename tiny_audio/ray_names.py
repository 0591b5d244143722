"""What we use of Ray that it does not document: its names may change with any version, and they change here alone.

`tests/test_private_names.py` looks for each in the installed Ray.
"""

from __future__ import annotations

import re
import socket

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
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"  # has HAProxy take requests, and the ingresses themselves do what proxies do

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


def refuse_shared_ports() -> None:
    """Makes Serve's proxy in this process refuse a port that another server has.

    Serve asks Linux to share it, which gives each of the two half of the connections. SO_REUSEADDR stays: a proxy that died
    could not come back while its old connections linger.
    """
    from ray.serve._private import http_util

    http_util.set_socket_reuse_port = lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def is_lost_process(failure: Exception) -> bool:
    """Whether a Train worker failed because its process died or did not answer: Ray's class for that is not public."""
    return hasattr(failure, "health_check_failure")
