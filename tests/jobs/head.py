"""A small Ray of a test's own: `python -m tests.jobs.head [NODES]` prints its URL and ends with its standard input.

A process of its own, because Ray decides about tokens when it is imported; every port is free and loopback's own,
because a second Ray on one machine cannot have the default port of the job agent, and then takes no jobs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TOKEN = "0123456789abcdef0123456789abcdef"


def main() -> None:
    """Start the nodes, print the dashboard's URL, wait for the end of the input, shut down."""
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        dashboard, agent = (one.getsockname()[1] for one in sockets)
    about = {"num_cpus": 2, "object_store_memory": 1 << 27}
    ports = {"include_dashboard": True, "dashboard_port": dashboard, "dashboard_agent_listen_port": agent}
    # Ray's sockets want a short path; the last of its processes may still be writing when we clean up.
    with tempfile.TemporaryDirectory(prefix="zgr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(True, connect=False, head_node_args={**about, **ports, "temp_dir": folder})
        # Without this note a job that begins looks for a Ray among the machine's processes, and takes any.
        write_ray_address(cluster.address, folder)
        try:
            for _ in range(int(sys.argv[1]) - 1 if len(sys.argv) > 1 else 0):
                cluster.add_node(**about)
            print(f"http://127.0.0.1:{dashboard}", cluster.address, flush=True)
            sys.stdin.read()
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def ray_head(nodes: int = 1, **variables: str):
    """A Ray with these environment variables; yields (URL of the dashboard, address for ray.init)."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "RAY_AUTH_MODE": "disabled", **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.head", str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=ROOT,
    ) as process:
        try:
            yield tuple(process.stdout.readline().split())
        finally:
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    main()
