"""Several hosts on this machine: each has its own network, processes, name, /tmp/ray and /dev/shm, and all share the files.

They are namespaces of the kernel, joined by a bridge in one more, and end with the process that made them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tiny_audio.lab.local_nodes import kill, named_processes
from tiny_audio.lab.ray_cli import BIN

NETWORK = "10.77.0"
STORE_BYTES = 100 * 2**20  # of a host's object store
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
CARRY_FRAMES = Path(__file__).with_name("slow_link.py")


@cache
def why_no_hosts() -> str:
    """Says why no hosts can be made here, or nothing if they can."""
    missing = [name for name in ("ip", "nsenter", "setpriv", "unshare") if shutil.which(name) is None]
    if missing:
        return f"hosts are made by iproute2 and util-linux, and {', '.join(missing)} is not there"
    if not Path("/dev/net/tun").exists():
        return "slow links are made by /dev/net/tun, which is not there"
    tried = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "ip", "link", "add", "type", "bridge"]
    try:
        done = subprocess.run(tried, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "making a namespace takes over 30 s"
    return f"namespaces may not be made here: {done.stderr.strip()}" if done.returncode else ""


class Namespaces:
    """A process in namespaces of its own, which others enter by its id."""

    def __init__(self, *kinds: str, prepare: str = "true"):
        command = ["unshare", *kinds, "--fork", "--kill-child", "bash", "-c", f"{prepare} && echo up && exec sleep infinity"]
        self.outer = subprocess.Popen([*DIE_WITH_US, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.outer.stdout.readline()
        if line != "up\n":
            raise RuntimeError(f"no namespaces: {line}")
        (self.inner,) = psutil.Process(self.outer.pid).children()

    def enter(self, *kinds: str) -> list[str]:
        """The beginning of a command that runs in these namespaces."""
        return ["nsenter", "--target", str(self.inner.pid), *kinds, "--"]

    def ip(self, *arguments: str) -> None:
        """Runs `ip` in the network of these namespaces."""
        subprocess.run([*self.enter("--net"), "ip", *arguments], check=True)

    def close(self) -> None:
        """Kills all processes in them, as when a machine loses its power."""
        kill([self.inner])
        self.outer.wait()
        self.outer.stdout.close()


class Host(Namespaces):
    """A machine of the cluster."""

    def __init__(self, hosts: Hosts, name: str, ip: str, resolves_to: str, settings: dict[str, str]):
        self.name, self.address, self.folder, self.settings = name, ip, hosts.folder / name, settings
        for folder in ("ray", "home/.ray"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self.names = self.folder / "hosts"
        self.names.write_text(f"127.0.0.1 localhost\n{resolves_to} {name}\n")
        (self.folder / "home/.ray/auth_token").write_text(hosts.token)
        Path("/tmp/ray").mkdir(exist_ok=True)
        mounts = (
            f"hostname {name} && mount --make-rprivate / && mount -t proc proc /proc && mount --bind {self.folder}/ray /tmp/ray"
            f" && mount -t tmpfs -o size=1G tmpfs /dev/shm && mount --bind {self.names} /etc/hosts && ip link set lo up"
        )
        super().__init__("--net", "--mount", "--uts", "--pid", prepare=mounts)

    def command(self, *command: str) -> list[str]:
        """A command as it runs on this host, in an environment of its own."""
        settings = {
            "HOME": str(self.folder / "home"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
            **self.settings,
        }
        environment = [f"{name}={value}" for name, value in settings.items() if value]
        return [*self.enter("--net", "--mount", "--uts", "--pid"), "env", f"--chdir={ROOT}", "-i", *environment, *command]

    def run(self, *command: str, timeout_s: float = 180, check: bool = True) -> str:
        """Runs a command there; returns what it printed.

        Raises:
            RuntimeError: it failed; the message is all that it printed.
        """
        done = subprocess.run(
            self.command(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stdout}")
        return done.stdout

    def popen(self, log: Path, *command: str) -> subprocess.Popen:
        """Starts a command there, whose output is added to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen([*DIE_WITH_US, *self.command(*command)], stdout=output, stderr=output)

    def cut(self) -> None:
        """Takes the link down."""
        self.ip("link", "set", "eth0", "down")

    def mend(self) -> None:
        """Brings the link up again."""
        self.ip("link", "set", "eth0", "up")

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of this host with `name` in their command line."""
        return [process for process in named_processes(self.inner.pid, name) if process != self.inner]

    def kill_processes(self, name: str) -> int:
        """Sends SIGKILL to them; returns how many there were."""
        return kill(self.processes(name))


class Hosts:
    """A switch, and the hosts on it, for as long as the context lasts.

    Args:
        folder: for the hosts' own files; a short path, because sockets lie in it.
    """

    def __init__(self, folder: Path):
        self.folder, self.token, self.by_name = folder, os.urandom(16).hex(), {}

    def __enter__(self) -> Hosts:
        self.switch = Namespaces("--net")
        self.switch.ip("link", "add", "br0", "type", "bridge")
        self.switch.ip("link", "set", "br0", "up")
        return self

    def __exit__(self, *error) -> None:
        for host in self.by_name.values():
            host.close()
        self.switch.close()

    def __getitem__(self, name: str) -> Host:
        return self.by_name[name]

    def add(
        self,
        name: str,
        settings: dict[str, str] | None = None,
        resolves_to: str = "",
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
    ) -> Host:
        """Makes a host and links it to the switch; one that takes the name of a lost one has its address too.

        Args:
            settings: of the environment of all commands on it.
            resolves_to: the address that its own name has on itself; its true one if empty.
            delay_s: of each frame on its link, either way.
            bytes_per_s: that its link carries, either way.
        """
        number = list(self.by_name).index(name) + 1 if name in self.by_name else len(self.by_name) + 1
        ip, port = f"{NETWORK}.{number}", f"p{number}"
        host = self.by_name[name] = Host(self, name, ip, resolves_to or ip, settings or {})
        if delay_s or bytes_per_s:
            self._link_slowly(host, port, delay_s, bytes_per_s)
        else:
            self.switch.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.inner.pid))
        self.switch.ip("link", "set", port, "master", "br0", "up")
        host.ip("address", "add", f"{ip}/24", "dev", "eth0")
        host.mend()
        for other in self.by_name.values():
            lines = [f"{each.address} {each.name}" for each in self.by_name.values() if each is not other]
            own = other.names.read_text().splitlines()[:2]
            other.names.write_text("\n".join([*own, *lines, ""]))
        return host

    def _link_slowly(self, host: Host, port: str, delay_s: float, bytes_per_s: float) -> None:
        """Joins the host to the switch by a process that carries its frames from one to the other."""
        pids = (str(host.inner.pid), str(self.switch.inner.pid))
        command = [*DIE_WITH_US, sys.executable, str(CARRY_FRAMES), *pids, port, str(delay_s), str(bytes_per_s)]
        carrier = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert carrier.stdout.readline() == "up\n"

    def remove(self, name: str) -> None:
        """Takes a host away as if its machine had lost its power."""
        self.by_name[name].close()


class RayHosts(Hosts):
    """Hosts on which Ray runs: a head without CPUs, and others with them. Each requires the token."""

    def start_head(self, name: str, settings: dict[str, str] | None = None, *options: str) -> None:
        """Makes a host, and starts the head on it."""
        self.head = self.add(name, settings)
        self.api = f"http://{name}:8265"
        ports = ["--port=6379", "--dashboard-port=8265", f"--dashboard-host={self.head.address}"]
        self.head.run("ray", "start", "--head", "--num-cpus=0", *self._common(self.head), *ports, *options)

    def state(self, kind: str) -> list[dict]:
        """What Ray says of its tasks, actors or nodes, asked from the client."""
        limits = ["--format", "json", "--detail", "--limit", "9999"]
        listing = self["client"].run("ray", "list", kind, "--address", self.api, *limits)
        return json.loads(listing[re.search(r"^\[", listing, re.MULTILINE).start() :])

    def start(self, labels: dict[str, str], num_cpus: int = 1, **options) -> None:
        """Makes hosts and starts Ray on them, on all at once; `labels` has those of each host by its name."""
        for name in labels:
            self.add(name, **options)
        self.join(labels, num_cpus)

    def join(self, labels: dict[str, str], num_cpus: int = 1) -> None:
        """Starts Ray on hosts that are there."""
        logs = {name: self.folder / f"{name}.log" for name in labels}
        address, size = f"--address={self.head.address}:6379", f"--num-cpus={num_cpus}"
        starting = {
            name: self[name].popen(log, "ray", "start", address, size, f"--labels={labels[name]}", *self._common(self[name]))
            for name, log in logs.items()
        }
        for name, process in starting.items():
            if process.wait(180):
                raise RuntimeError(logs[name].read_text())

    def _common(self, host: Host) -> list[str]:
        return [
            "--num-gpus=0",
            "--disable-usage-stats",
            f"--node-ip-address={host.address}",
            f"--object-store-memory={STORE_BYTES}",
        ]
