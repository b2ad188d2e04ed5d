"""`zerogr serve` as a process of its own, with a Ray of its own, and what a test may do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import psutil

from tests.serving.ports import free_port
from zerogr_ray.serving.state import State

START = 300
"""Seconds that Ray, Serve and the replicas may take on a busy machine; the limit only bounds a failing test."""


class Service:
    """A running service."""

    def __init__(self, process, port, state, metrics_port):
        self.process, self.port, self.metrics_port = process, port, metrics_port
        self.url = f"http://127.0.0.1:{port}"
        self.state = State(state)

    def actors(self, name):
        """Processes of this service's own Ray whose title has `name`, such as TrieOwner."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def replicas(self):
        return self.actors("ServeReplica:zerogr:Search")

    def kill(self, process):
        """End one of the service's processes as the kernel would."""
        assert process.pid in [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        os.kill(process.pid, signal.SIGKILL)


@contextmanager
def running(*arguments, state, env=None):
    """A Service, once it is ready. Everything it started ends with the block."""
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "zerogr_ray.cli", "serve", *map(str, arguments), "--port", str(port)]
    command += ["--state", str(state), "--set", f"metrics_port={metrics_port}", "--set", "threads=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    lines, complaints = [], []
    for stream, into in ((process.stdout, lines), (process.stderr, complaints)):
        threading.Thread(target=_read, args=(stream, into), daemon=True).start()
    began = time.monotonic()
    children = []
    try:
        while not any(line.startswith("ready") for line in lines):
            assert process.poll() is None, "".join(complaints)
            assert time.monotonic() - began < START, "".join(complaints)
            time.sleep(0.1)
        yield Service(process, port, state, metrics_port)
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(children, timeout=20)
        for child in left:
            child.kill()


def _read(stream, lines):
    for line in stream:
        lines.append(line)


class Load:
    """Clients that search without a pause and keep what they were answered: (second, status or error, version)."""

    def __init__(self, url, clients=4, pause=0.0, **asked):
        self.url, self.asked, self.pause = url, {"query": "red fox", "k": 5} | asked, pause
        self.rows, self.refusals = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request hangs"

    def _run(self):
        with httpx.Client(base_url=self.url, timeout=100) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    answer = client.post("/v1/search", json=self.asked)
                    version = answer.json().get("version") if answer.status_code == 200 else None
                    if version is None:
                        self.refusals.append(answer.text)
                    self.rows.append((began, answer.status_code, version, time.monotonic() - began))
                except httpx.HTTPError as error:
                    self.rows.append((began, type(error).__name__, None, time.monotonic() - began))
                time.sleep(self.pause)

    def statuses(self, since=0.0):
        return [status for began, status, _, _ in self.rows if began >= since]
