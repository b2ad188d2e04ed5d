"""The verbs of the `zerogr` command that are about runs on a cluster. Heavy imports wait inside them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zerogr_ray.errors import InputError
from zerogr_ray.options import Json, print_json

if TYPE_CHECKING:
    from zerogr_ray.jobs.client import Cluster

Address = Annotated[
    str | None, typer.Option(help="URL of Ray's dashboard (default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS).")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="As zerogr submit and zerogr jobs print it.")]

ANY_OPTIONS = {"ignore_unknown_options": True}
"""Options that are not submit's own are the verb's."""


def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(help="index, train or evaluate.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="The verb's own arguments and options.")] = None,
    address: Address = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Give the job this variable of our environment. May repeat."),
    ] = None,
) -> None:
    """Run a verb on a Ray cluster, show its log and progress, and exit as it does.

    The same submission twice follows the one that runs. Ctrl-C leaves it running. No variable of the environment goes
    along but those that --env names; whoever may ask the cluster for jobs can read them.

    Example: zerogr submit index s3://bucket/docs.jsonl /shared/indexes/docs --address http://head:8265
    """
    from zerogr_ray.jobs.request import known_verb, make_request

    variables = _forwarded(env or [])
    given = _parse(context, known_verb(verb), arguments or [])
    request = make_request(verb, arguments or [], given, list(variables))
    from zerogr_ray.jobs.client import Cluster

    cluster = Cluster(address)
    name = cluster.submit(request, variables, _say)
    if no_wait:
        print(name)
        return
    if variables:
        _say(f"the job gets {', '.join(variables)}")
    _say(f"{name} at {cluster.url}")
    _follow(cluster, name)


def jobs(address: Address = None, as_json: Json = False) -> None:
    """List submitted runs, oldest first: id, verb, status, start, duration.

    Example: zerogr jobs --address http://head:8265
    """
    from zerogr_ray.jobs.client import Cluster

    found = Cluster(address).jobs()
    if as_json:
        print_json([asdict(job) | {"seconds": round(job.seconds, 1)} for job in found])
        return
    for job in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        print(job.id, job.verb, job.status, started, f"{job.seconds:.0f} s", sep="\t")


def logs(
    name: Id,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; then exit as it did.")] = False,
) -> None:
    """Print what a run has said: its result on standard output, the rest on standard error.

    Example: zerogr logs zerogr-index-0a1b2c3d4e --follow
    """
    from zerogr_ray.jobs.client import Cluster
    from zerogr_ray.jobs.log import LogPrinter

    cluster = Cluster(address)
    cluster.job(name)
    if follow:
        _follow(cluster, name)
        return
    LogPrinter().feed(cluster.log(name))


def stop(name: Id, address: Address = None) -> None:
    """Stop a run. What it has finished is kept: submit it again to go on.

    Example: zerogr stop zerogr-index-0a1b2c3d4e
    """
    from zerogr_ray.jobs.client import Cluster

    job = Cluster(address).stop(name)
    print(job.id, job.status, sep="\t")


def _parse(context: typer.Context, verb: str, arguments: list[str]) -> dict[str, Any]:
    """The verb's parameters by its own parser, which prints its usage and exits with 2 on a wrong one."""
    group: Any = context.find_root().command
    command = group.get_command(context, verb)
    parsed = command.make_context(f"submit {verb}", list(arguments), parent=context.find_root())
    return dict(parsed.params)


def _forwarded(names: list[str]) -> dict[str, str]:
    for name in names:
        if name not in os.environ:
            raise InputError(f"--env {name}: this variable is not set here; set it, or leave the option out")
    return {name: os.environ[name] for name in names}


def _follow(cluster: Cluster, name: str) -> None:
    """Show the log until the run ends, and exit as it did."""
    from zerogr_ray.jobs.client import outcome
    from zerogr_ray.jobs.log import LogPrinter

    printer = LogPrinter()
    try:
        job = cluster.follow(name, printer.feed)
    except KeyboardInterrupt:
        _say(f"{name} goes on; zerogr logs {name} --follow comes back to it, zerogr stop {name} ends it")
        raise SystemExit(130) from None
    code, sentence = outcome(job, printer.tail)
    if sentence:
        _say(sentence)
    if code:
        raise SystemExit(code)


def _say(sentence: str) -> None:
    print(f"zerogr: {sentence}", file=sys.stderr, flush=True)
