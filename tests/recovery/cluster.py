"""A Ray cluster whose nodes have disks of their own and die as machines do: every process of one at once.

Each node is a `ray start` in a mount namespace with a tmpfs as its disk, on which Ray's session and the cache of this
package lie. That takes the right to mount; without it the nodes share the machine's disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.serving.ports import free_port

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
START = 120
"""Seconds that Ray may take on a busy machine; the limit only bounds a failing test."""

DISK = 256
"""MiB of a node's disk."""

MOUNTING = "mount -t tmpfs -o size={size}m zerogr {disk} && exec"


def may_mount() -> bool:
    """Whether a node can have a disk of its own."""
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "zerogr", "/mnt"], capture_output=True)
    return tried.returncode == 0


class Node:
    """One node: its raylet, agents and workers, all of them children of `ray start --block`."""

    def __init__(self, name: str, disk: Path, mounted: bool, arguments: Sequence[str], env: dict[str, str]) -> None:
        self.name, self.disk, self.mounted = name, disk, mounted
        disk.mkdir(parents=True, exist_ok=True)
        command = [BIN / "ray", "start", *arguments, "--block", "--temp-dir", disk / "ray", "--disable-usage-stats"]
        if mounted:
            script = f'{MOUNTING.format(size=DISK, disk=disk)} "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "node", *command]
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**env, "ZEROGR_CACHE": str(disk / "cache"), "TMPDIR": str(disk)},
            cwd=ROOT,
        )

    @property
    def seen(self) -> Path:
        """The node's disk as this process reaches it."""
        return Path(f"/proc/{self.process.pid}/root{self.disk}") if self.mounted else self.disk

    def processes(self) -> list[psutil.Process]:
        """All of the node's processes, the raylet before its workers."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def runs(self, pid: int) -> bool:
        """Whether the process is one of this node's."""
        return pid in [process.pid for process in self.processes()]

    def kill(self) -> None:
        """End all of it as a power cut would."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def fill(self) -> None:
        """Leave not a byte on its disk."""
        with (self.seen / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.seen / "filler").unlink(missing_ok=True)

    def forget(self) -> None:
        """Empty its cache."""
        shutil.rmtree(self.seen / "cache", ignore_errors=True)


class Cluster:
    """A head without CPUs, where the command runs, and nodes that work. `env` is the environment of all of them."""

    def __init__(self, folder: Path, env: dict[str, str], mounted: bool, cpus: int = 2) -> None:
        self.folder, self.mounted, self.cpus = folder, mounted, cpus
        self.env = {name: value for name, value in env.items() if not name.startswith("RAY_")} | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
            "RAY_AUTH_MODE": "disabled",
        }
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self.count = 0
        self.head = self._start(
            "--head",
            "--port",
            port,
            "--num-cpus",
            "0",
            "--include-dashboard",
            "false",
            *_port("ray-client-server-port"),
        )
        self.nodes: list[Node] = []

    def _start(self, *arguments: str) -> Node:
        self.count += 1
        # All nodes have their disk at the same path where each has its own, as machines with one image have.
        disk = self.folder / ("disk" if self.mounted else f"disk{self.count}")
        ports = [
            option
            for name in (
                "node-manager-port",
                "object-manager-port",
                "dashboard-agent-listen-port",
                "dashboard-agent-grpc-port",
                "runtime-env-agent-port",
                "metrics-export-port",
            )
            for option in _port(name)
        ]
        ports += ["--min-worker-port", "0", "--max-worker-port", "0", "--node-ip-address", "127.0.0.1"]
        name = f"machine{self.count}"  # a resource, by which the head's list of nodes tells them apart
        ports += ["--object-store-memory", str(80 << 20), "--resources", json.dumps({name: 1})]
        return Node(name, disk, self.mounted, [*arguments, *ports], self.env)

    def grow(self, nodes: int) -> None:
        """Add nodes until `nodes` of them work."""
        self.nodes = [node for node in self.nodes if node.process.poll() is None]
        for _ in range(nodes - len(self.nodes)):
            self.nodes.append(self._start("--address", self.address, "--num-cpus", str(self.cpus)))
        self.wait()

    def wait(self) -> None:
        """Until the head counts exactly the nodes that were started and not killed."""
        wanted = sorted(node.name for node in [self.head, *self.nodes])
        until = time.monotonic() + START
        while (alive := self._alive()) != wanted:
            if time.monotonic() > until or any(node.process.poll() is not None for node in [self.head, *self.nodes]):
                raise RuntimeError(f"of the Ray nodes {wanted} {alive} are alive")
            time.sleep(0.1)

    def _alive(self) -> list[str]:
        """Names of the nodes that the head counts; none while it does not answer."""
        from ray._raylet import GcsClient
        from ray.exceptions import RayError

        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5).values()
        except (RayError, RuntimeError):
            return []
        known = {node.name for node in [self.head, *self.nodes]}
        return sorted(name for node in nodes if node.state == 0 for name in known & set(node.resources_total))

    def command(self, arguments: Sequence[str | Path], **how):
        """Begin a Python process on the head, with RAY_ADDRESS set."""
        entering = ["nsenter", f"--mount=/proc/{self.head.process.pid}/ns/mnt"] if self.mounted else []
        cache = {"ZEROGR_CACHE": str(self.head.disk / "cache"), "TMPDIR": str(self.head.disk)}
        return subprocess.Popen(
            [*entering, sys.executable, *map(str, arguments)],
            env={**self.env, **cache, "RAY_ADDRESS": self.address},
            cwd=ROOT,
            **how,
        )

    def node_of(self, pid: int) -> Node:
        """The node that runs this process."""
        return next(node for node in [self.head, *self.nodes] if node.runs(pid))

    def shutdown(self) -> None:
        """End all nodes."""
        for node in [*self.nodes, self.head]:
            node.kill()


def _port(name: str) -> list[str]:
    return [f"--{name}", str(free_port())]


@contextmanager
def cluster(env: dict[str, str], nodes: int, mounted: bool = True):
    """A Cluster with a head and `nodes` nodes that work."""
    # Ray's sockets want a short path; the last of its processes may still be writing when we clean up.
    with tempfile.TemporaryDirectory(prefix="zgr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Cluster(Path(folder), env, mounted)
        try:
            found.grow(nodes)
            yield found
        finally:
            found.shutdown()


def end(process: subprocess.Popen) -> None:
    """kill -9 a command."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
