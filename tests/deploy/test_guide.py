"""The operations guide names files, metrics and commands that there are. What it tells a cluster to do is not run."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from tests.deploy.files import INFRA, ROOT, documents, manifest, values
from zerogr_ray.cli import app

GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
COMMANDS = [found[1] for line in LINES if (found := re.search(r"(?:^|-- |')zerogr ([^']+)", line))]


def test_every_file_that_is_named_is_there():
    linked = {(ROOT / "docs" / path).resolve() for path in re.findall(r"\]\(([^)#]+)\)", GUIDE)}
    named = {ROOT / path for path in re.findall(r"\b(?:infra|clusters|serve)/[\w.-]+\.\w+", GUIDE)}
    assert len(linked) > 8
    assert {path for path in linked | named if not path.exists()} == set()


@pytest.mark.model
def test_every_metric_is_told_of():
    from zerogr_ray.serving.watching import METRICS

    assert set(re.findall(r"`(zerogr_\w+)`", GUIDE)) == METRICS.keys()


def test_there_are_commands():
    assert len(COMMANDS) == 9


@pytest.mark.parametrize("command", COMMANDS)
def test_every_zerogr_command_is_one(command):
    verb, *arguments = shlex.split(command)
    assert typer.main.get_command(app).commands[verb].make_context(verb, arguments)


def test_it_speaks_of_what_the_manifests_name():
    service = manifest("RayService")["metadata"]["name"]
    policies = documents(INFRA / "network.yaml")
    (labels,) = (one for one in values(policies, "matchLabels") if "may-search" in one)
    ((label, value),) = labels.items()
    (secret,) = {one["name"] for one in values(manifest("RayJob"), "secretRef")}
    for name in (f"rayservice {service} ", f"service/{service}-serve-svc", f"{label}={value}", f"generic {secret} "):
        assert name in GUIDE
