"""A Ray of this process's own, for the quickstart, the benchmarks and the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tiny_audio.config import require
from tiny_audio.data.stream import quiet_ray_data
from tiny_audio.lab.ray_cli import BIN, Cluster, free_port
from tiny_audio.ray_names import AGENT_PORT, MAX_STARTING_WORKERS, SERVER_ADDRESS


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """Starts a Ray with a job server on 127.0.0.1, and stops it when the context ends.

    Raises:
        ConfigError: another Ray runs on this machine. Ray's job agents share a fixed port, and the second gets no jobs.
    """
    import ray

    in_use = f"another Ray on this machine holds port {AGENT_PORT}, which runs its jobs; stop it (ray stop), then try again"
    require(free_port(AGENT_PORT) == AGENT_PORT, in_use)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs run `python`, which must be this one
    os.environ.setdefault(MAX_STARTING_WORKERS, "4")  # Ray warns of four times as many processes
    port = free_port(8265)
    # Ray Train asks this server at the end of a run. Without the variable it searches for the server, and waits 12 s
    # where an earlier Ray left its address behind.
    os.environ[SERVER_ADDRESS] = f"http://127.0.0.1:{port}"
    context = ray.init(
        address="local",
        num_cpus=max(4, (os.cpu_count() or 1) + 2),  # training holds two while its decode tasks need more
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        log_to_driver=False,
        logging_level="ERROR",
    )
    del os.environ[SERVER_ADDRESS]  # Ray's processes have it; in this one it would override the address of any other cluster
    quiet_ray_data()
    try:
        yield Cluster(f"http://{context.dashboard_url}", context.address_info["gcs_address"])
    finally:
        ray.shutdown()
