"""A Ray cluster as submissions see it: its dashboard's job server, asked with a limit on every wait."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zerogr_ray.cluster import Node, refuse_lacking
from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.jobs.request import RUN_FILE, Request

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
KNOCK = 5.0
"""Seconds until a dashboard has to accept a connection, and then to answer the first question."""
REPLY = 60.0
"""Seconds until it has to answer; a busy head takes its time, and Ray's client would wait for ever."""
AGENT = 30.0
"""Seconds that the job agent of a cluster that has just started may take."""
RECONNECT = 60.0
"""Seconds for which a lost log is looked for."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NO_PACKAGE = ("No module named zerogr_ray", "No module named 'zerogr_ray")


class ClusterRefused(ZeroGRError):
    """A Ray cluster that cannot be asked, or does not take the job."""


@dataclass(frozen=True)
class Job:
    """One submitted run."""

    id: str
    verb: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    started: float
    """Seconds since 1970."""
    ended: float | None
    code: int | None
    """Exit status of the remote command."""
    message: str
    """Ray's own account."""

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return (self.ended or time.time()) - self.started


def dashboard_url(address: str | None) -> str:
    """URL of the dashboard: `address`, else $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS, else this machine's.

    Raises InputError for what is no URL of a dashboard.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    url = (named if "://" in named else f"http://{named}").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or named in ("auto", "local"):
        raise InputError(f"{named} is no address for jobs; give the URL of Ray's dashboard, such as http://HEAD:8265")
    return url


class Cluster:
    """The job server at `address`. The constructor asks whether it answers, lets us in and runs the same Ray.

    Raises InputError for a wrong address, ClusterRefused where it cannot be used.
    """

    def __init__(self, address: str | None = None) -> None:
        self.url = dashboard_url(address)
        mode = _authentication_mode(self.url)
        if mode == "token":
            self._need_token()
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        with _only_address(self.url):
            try:
                self._client = JobSubmissionClient(self.url)
            except AuthenticationError as error:
                raise ClusterRefused(self._about_token(error)) from None
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                why = "there is no job server" if "404" in str(error) else _line(error)
                raise ClusterRefused(f"{self.url} does not answer as a Ray dashboard does: {why}") from None
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # importing it sets it
        self._client._do_request = partial(self._client._do_request, timeout=REPLY)
        self._check_versions()

    def submit(self, request: Request, variables: dict[str, str], say: Callable[[str], None]) -> str:
        """Start the run, or find it running; returns the id. `variables` become the job's environment.

        Raises ClusterRefused where the cluster lacks what the settings name, or does not take jobs.
        """
        earlier = {job.id: job for job in self.jobs()}
        attempts = [job for job in earlier.values() if job.id == request.id or _attempt(job.id, request.id) > 1]
        for job in attempts:
            if job.status not in ENDED:
                say(f"{job.id} is running already; this is its log")
                return job.id
        refuse_lacking(request.asked, self._nodes())
        latest = max((_attempt(job.id, request.id) for job in attempts), default=0)
        name = request.id if latest == 0 else f"{request.id}-{latest + 1}"
        if latest:
            before = earlier[request.id if latest == 1 else f"{request.id}-{latest}"]
            say(f"{before.id} has ended ({before.status}); this is attempt {latest + 1}")
        environment: dict[str, Any] = {"env_vars": variables} if variables else {}
        with tempfile.TemporaryDirectory() if request.run_file is not None else nullcontext("") as folder:
            if request.run_file is not None:
                (Path(folder) / RUN_FILE).write_text(request.run_file, encoding="utf-8")
                environment["working_dir"] = folder
            self._start(name, request, environment, say)
        return name

    def _start(self, name: str, request: Request, environment: dict[str, Any], say: Callable[[str], None]) -> None:
        until = time.monotonic() + AGENT
        while True:
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=name,
                    runtime_env=environment,
                    metadata={"zerogr": request.verb},
                )
                return
            except (OSError, RuntimeError) as error:
                if "already exists" in str(error):  # the same submission, a moment earlier
                    say(f"{name} is running already; this is its log")
                    return
                if "No available agent" not in str(error):
                    raise ClusterRefused(f"Ray at {self.url} does not take the job: {_line(error)}") from None
            if time.monotonic() > until:
                raise ClusterRefused(
                    f"Ray at {self.url} runs no job agent; look into dashboard_agent.log on its head node "
                    "(a second Ray on one machine needs its own --dashboard-agent-listen-port)"
                )

    def jobs(self) -> list[Job]:
        """All runs that were submitted to this cluster, oldest first."""
        found = [_job(details) for details in self._ask(self._client.list_jobs) if "zerogr" in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started)

    def job(self, name: str) -> Job:
        """The run called `name`. Raises InputError with the nearest known ids."""
        known = {job.id: job for job in self.jobs()}
        if name in known:
            return known[name]
        near = get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[-3:]
        hint = f"the nearest are {', '.join(near)}" if near else "nothing has been submitted there"
        raise InputError(f"there is no job {name} at {self.url}; {hint}")

    def log(self, name: str) -> str:
        """What the run has said so far."""
        text: str = self._ask(lambda: self._client.get_job_logs(name))
        return text.replace("\r\n", "\n").replace("\r", "\n")  # as the log that is followed has it

    def stop(self, name: str, wait: float = 15.0) -> Job:
        """Tell the run to end, and wait a little for it."""
        job = self.job(name)
        if job.status not in ENDED:
            self._ask(lambda: self._client.stop_job(name))
        until = time.monotonic() + wait
        while (job := self.job(name)).status not in ENDED and time.monotonic() < until:
            time.sleep(0.5)
        return job

    def follow(self, name: str, show: Callable[[str], None]) -> Job:
        """Show the run's log as it comes, from its beginning, until it ends. A lost connection is made again.

        Raises ClusterRefused when the cluster stays away; the run may go on.
        """
        seen, lost = 0, 0.0
        while True:
            try:
                seen = asyncio.run(self._tail(name, show, seen))
                if (job := self.job(name)).status in ENDED:
                    return job
                lost = 0.0
            except _Away as away:
                if away.seen > seen:
                    seen, lost = away.seen, 0.0
            except ClusterRefused:
                pass
            lost = lost or time.monotonic()
            if time.monotonic() - lost > RECONNECT:
                raise ClusterRefused(
                    f"{self.url} has been silent for {RECONNECT:.0f} s; the job may go on: zerogr logs {name} --follow"
                )
            time.sleep(1)

    async def _tail(self, name: str, show: Callable[[str], None], seen: int) -> int:
        """Show what comes after the first `seen` characters; returns how many there are."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(name):
                fresh = text[max(0, seen - position) :]
                position += len(text)
                if fresh:
                    show(fresh)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise _Away(max(seen, position)) from error
        return max(seen, position)

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (OSError, RuntimeError) as error:
            raise ClusterRefused(f"Ray at {self.url} does not answer: {_line(error)}") from None

    def _json(self, path: str) -> Any:
        reply = self._ask(lambda: self._client._do_request("GET", path))
        return reply.json().get("data") if reply.status_code == 200 else None

    def _nodes(self) -> list[Node]:
        found = ((self._json("/api/v0/nodes?detail=1&limit=10000") or {}).get("result") or {}).get("result") or []
        return [Node(node["resources_total"], node["labels"]) for node in found if node["state"] == "ALIVE"]

    def _check_versions(self) -> None:
        import ray

        there = self._json("/api/v0/cluster_metadata") or {}
        python = "{}.{}".format(*sys.version_info)
        theirs = ".".join(str(there.get("pythonVersion", python)).split(".")[:2])
        if (theirs, there.get("rayVersion", ray.__version__)) != (python, ray.__version__):
            raise ClusterRefused(
                f"Ray at {self.url} is {there.get('rayVersion')} on Python {theirs}, here it is {ray.__version__} "
                f"on Python {python}; use the same on both sides"
            )

    def _need_token(self) -> None:
        """Raises ClusterRefused where no token is to be found; Ray sends one only if the mode is set as well."""
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        file = Path(path) if path else Path.home() / ".ray" / "auth_token"
        if not os.environ.get("RAY_AUTH_TOKEN") and not file.is_file():
            raise ClusterRefused(self._about_token("401"))
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    def _about_token(self, error: object) -> str:
        ways = "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        if "failed" in str(error):
            return f"Ray at {self.url} refuses our token; set {ways}, to the cluster's own (ray get-auth-token there)"
        return f"Ray at {self.url} asks for a token; set {ways}, and RAY_AUTH_MODE=token"


class _Away(Exception):
    """The log broke off after so many characters."""

    def __init__(self, seen: int) -> None:
        self.seen = seen


def outcome(job: Job, said: str) -> tuple[int, str | None]:
    """Exit status of a run that has ended, and a sentence where its own last line does not say it."""
    if job.status == "SUCCEEDED":
        return 0, None
    if job.status == "STOPPED":
        return 1, f"{job.id} was stopped; submit it again to go on"
    if job.code is None:
        return 1, f"{job.id} did not run: {_line(job.message)}"
    if any(words in said for words in NO_PACKAGE):
        return 2, "the cluster's Python has no zerogr_ray that takes jobs; install this version into its image"
    if job.code == 127:
        return 2, "the cluster's nodes have no command `python`; put it on the PATH of their image"
    if not 0 < job.code < 126:  # a signal: most often the kernel, for want of memory
        return 1, f"{job.id} was killed (status {job.code}); submit it again to go on"
    return job.code, None


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        verb=details.metadata["zerogr"],
        status=str(details.status.value),
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        code=details.driver_exit_code,
        message=details.message or "",
    )


def _attempt(name: str, base: str) -> int:
    """1 for `base`, N for `base`-N, 0 for another run."""
    number = name.removeprefix(f"{base}-")
    return 1 if name == base else int(number) if number != name and number.isdecimal() else 0


def _authentication_mode(url: str) -> str:
    """What Ray at `url` asks for; the one question that it answers to everybody. Raises ClusterRefused."""
    import requests

    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), KNOCK).close()
        reply = requests.get(f"{url}/api/authentication_mode", timeout=KNOCK)
        return str(reply.json()["authentication_mode"]) if reply.status_code == 200 else "disabled"
    except (OSError, ValueError, KeyError) as error:  # requests' own errors are OSErrors and ValueErrors
        why = "it is no Ray dashboard" if isinstance(error, (ValueError, KeyError)) else _line(error)
        why = f"no answer in {KNOCK:.0f} s" if "timed out" in why else why
        raise ClusterRefused(
            f"no Ray answers at {url} ({why}); give the URL of its dashboard, --address http://HEAD:8265"
        ) from None


@contextmanager
def _only_address(url: str) -> Iterator[None]:
    """Ray's client takes $RAY_ADDRESS before what it is given; this one variable stands above that."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = url
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _line(error: object) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
