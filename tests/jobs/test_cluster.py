"""Submissions to a real Ray: a build that is left, stopped and taken up again; what a cluster refuses; tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.command import zerogr
from tests.jobs.head import ROOT, TOKEN, ray_head
from tests.tiny import save_tiny
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.errors import InputError

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def head():
    """Two nodes on this machine."""
    with ray_head(nodes=2) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def url(head):
    return head[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(["the red fox", "a json file", "web"])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(folder / "tiny")
    return folder


def build(folder, *settings, model=None, out="index"):
    """Arguments of a small build without the stages that take long and are tested elsewhere."""
    model = model or folder / "tiny"
    values = {
        "model": model,
        "llm.model": model,
        "llm.engine": "transformers",
        "docids.examples": 0,
        "queries.examples": 0,
        "queries.per_document": 1,
        "queries.filter.repeats": 0,
        "queries.filter.shared": "false",
        "queries.filter.round_trip": 0,
        "queries.max_new_tokens": 4,
        "docids.max_new_tokens": 4,
        "training.epochs": 0.1,
        "postings": "none",
        "calibration.texts": 0,
        "calibration.queries": 0,
    }
    chosen = [f"{name}={value}" for name, value in values.items()] + list(settings)
    return ["index", folder / "corpus.jsonl", folder / out, *(part for one in chosen for part in ("--set", one))]


def command(*arguments, prelude="", **variables):
    """The command in a process of its own, which hears Ctrl-C even if the tests run in a shell's background."""
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hears}\n{prelude}\nimport sys; from zerogr_ray.cli import main; main()"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    )


def test_a_build_can_be_left_found_again_stopped_and_finished(url, folder):
    submission = ("submit", *build(folder), "--json", "--address", url)
    status, out, err = zerogr(*submission, "--no-wait")
    assert (status, len(out.split())) == (0, 1), err
    name = out.strip()

    with command(*submission) as second:
        said = [line for line, _ in zip(second.stderr, range(4), strict=False)]
        second.send_signal(signal.SIGINT)
        out, rest = second.communicate(timeout=60)
    assert f"{name} is running already" in said[0]
    assert (second.returncode, out) == (130, "")
    assert f"zerogr logs {name} --follow comes back" in rest
    assert json.loads(zerogr("jobs", "--address", url, "--json")[1])[0]["status"] == "RUNNING"

    assert zerogr("stop", name, "--address", url) == (0, f"{name}\tSTOPPED\n", "")
    status, out, err = zerogr("logs", name, "--follow", "--address", url)
    assert (status, out) == (1, "")
    assert f"{name} was stopped" in err

    status, out, err = zerogr(*submission)
    assert status == 0, err
    assert json.loads(out)["documents"] == 3
    assert "this is attempt 2" in err
    assert "training" in err
    assert (folder / "index" / "manifest.json").exists()
    assert zerogr("logs", f"{name}-2", "--address", url)[1] == out
    lines = [line.split("\t") for line in zerogr("jobs", "--address", url)[1].splitlines()]
    assert [line[:3] for line in lines] == [[name, "index", "STOPPED"], [f"{name}-2", "index", "SUCCEEDED"]]


def test_bad_input_there_exits_with_2_here(url, folder):
    status, out, err = zerogr("submit", "evaluate", folder / "nothing", folder, "--address", url)
    assert (status, out) == (2, "")
    assert f"zerogr: {folder}/nothing does not exist" in err


def test_an_unknown_job_is_answered_with_the_nearest(url, folder):
    name = zerogr("submit", "evaluate", folder / "no-index", folder, "--address", url, "--no-wait")[1].strip()
    for verb in ("logs", "stop"):
        status, _, err = zerogr(verb, name[:-1], "--address", url)
        assert status == 2
        assert f"there is no job {name[:-1]} at {url}; the nearest" in err
        assert name in err


def test_resources_that_the_cluster_lacks_are_named_in_seconds(url, folder):
    started = time.monotonic()
    status, _, err = zerogr("submit", *build(folder, "llm.gpus=8"), "--address", url)
    assert (status, time.monotonic() - started < 20) == (2, True)
    assert "llm asks for 8 GPU, the Ray cluster has 0" in err
    _, _, err = zerogr("submit", *build(folder, 'llm.labels={pool="a100"}'), "--address", url)
    assert "llm asks for nodes labelled pool=a100, the Ray cluster has none with such a label" in err


def test_a_build_is_refused_before_its_corpus_is_read(head, folder):
    started = time.monotonic()
    variables = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": head[1]}
    with command(*build(folder, "training.workers=99", out="large"), **variables) as run:
        _, err = run.communicate(timeout=120)
    assert (run.returncode, time.monotonic() - started < 60) == (2, True), err
    assert "zerogr: training asks for 99 times 1 CPU, the Ray cluster has 4, 2 of them on its largest node" in err
    assert not list((folder / "large.work").glob("corpus-*"))


def test_another_ray_or_python_is_refused_with_both_versions(url, folder, monkeypatch):
    import ray

    here, python = ray.__version__, "{}.{}".format(*sys.version_info)
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    status, _, err = zerogr("submit", *build(folder), "--address", url)
    assert status == 2
    assert f"is {here} on Python {python}, here it is 2.1.0 on Python {python}" in err


def test_a_ray_that_does_not_answer_is_named_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"no Ray answers at RAY_ADDRESS=127\.0\.0\.1:1: .*refused"), ray_cluster():
        pass


def test_a_model_that_only_the_driver_sees_is_refused_by_node(head, folder):
    # A folder by an open file of the driver's own process is one that no other process has.
    prelude = f"import os; os.dup2(os.open({str(folder / 'tiny')!r}, os.O_RDONLY), 77)"
    arguments = build(folder, model="/proc/self/fd/77", out="unseen")
    variables = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with command(*arguments, prelude=prelude, RAY_ADDRESS=head[1], **variables) as run:
        _, err = run.communicate(timeout=120)
    assert run.returncode == 2, err
    assert "zerogr: model /proc/self/fd/77 is on the driver's machine, but not on node " in err


def test_a_cluster_with_a_token_wants_it_and_takes_jobs_with_it(folder, tmp_path):
    variables = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

    def told(*arguments, **token):
        with command(*arguments, HOME=str(tmp_path), **token) as run:
            out, err = run.communicate(timeout=300)
        return run.returncode, out, err

    with ray_head(**variables) as (url, _):
        status, _, err = told("jobs", "--address", url)
        assert status == 2
        assert f"Ray at {url} asks for a token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH" in err
        status, _, err = told("jobs", "--address", url, RAY_AUTH_TOKEN="1" * 32)
        assert status == 2
        assert f"Ray at {url} refuses our token; set RAY_AUTH_TOKEN" in err
        (tmp_path / "token").write_text(TOKEN)
        # The job joins Ray and asks a worker, whose answer says that the model's window is too short.
        submission = (
            "submit",
            *build(folder, "llm.max_model_len=128", "docids.max_new_tokens=120", out="short"),
            "--address",
            url,
        )
        status, _, err = told(*submission, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
        assert status == 2, err
        assert "llm.max_model_len is 128" in err
