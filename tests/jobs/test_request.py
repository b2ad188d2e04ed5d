"""Submissions before they leave: what is refused here, what makes two of them the same, how a log is taken apart."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from tests.command import zerogr
from zerogr_ray.cluster import Ask, Node, refuse_lacking
from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.jobs.client import ENDED, Job, dashboard_url, outcome
from zerogr_ray.jobs.log import LogPrinter
from zerogr_ray.jobs.remote import Marked
from zerogr_ray.jobs.request import RUN_FILE, make_request

NOWHERE = ("--address", "http://127.0.0.1:1")


def refusal(*arguments):
    status, out, err = zerogr("submit", *arguments, *NOWHERE)
    assert (status, out) == (2, ""), err
    assert "Traceback" not in err
    return err


def request(verb="index", *arguments, forwarded=(), **given):
    return make_request(verb, arguments, {"corpus": "s3://b/c", "out": "/i", **given}, forwarded)


def test_a_wrong_verb_or_argument_is_refused_before_the_cluster_is_asked():
    assert "did you mean index?" in refusal("indx", "s3://b/c", "/i")
    assert "choose index, train, evaluate" in refusal("serve", "/i")
    assert "No such option: --quite" in refusal("index", "s3://b/c", "/i", "--quite")
    assert "Missing argument" in refusal("index", "s3://b/c")
    assert "did you mean 'epochs'" in refusal("index", "s3://b/c", "/i", "--set", "training.epoch=1")
    assert "did you mean 'draws'" in refusal("evaluate", "/i", "/d", "--set", "draw=1")
    assert "training.epochs" in refusal("train", "queries", "/rows.jsonl", "/a", "--set", "training.epochs=few")
    assert "there is no run file" in refusal("index", "s3://b/c", "/i", "--config", "no.toml")
    assert "--env NOT_THERE" in refusal("index", "s3://b/c", "/i", "--env", "NOT_THERE")


def test_paths_of_this_machine_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "x").mkdir(parents=True)
    assert "docs.jsonl is a path on this machine" in refusal("index", "docs.jsonl", "/i")
    assert "../rows is a path on this machine" in refusal("train", "queries", "/rows", "../rows", "/a")
    assert "~/run is a path on this machine" in refusal("evaluate", "/i", "/d", "--run", "~/run")
    assert "llm.model is models/x" in refusal("index", "s3://b/c", "/i", "--set", "llm.model=models/x")
    assert "docids.adapter is ./a" in refusal("index", "s3://b/c", "/i", "--set", "docids.adapter=./a")
    assert "encoder is ./e" in refusal("evaluate", "/i", "/d", "--encoder", "./e")
    assert "no Ray answers" in refusal("index", "s3://b/c", "/i", "--set", "llm.model=org/name")


def test_an_address_without_a_ray_is_said_at_once():
    assert "no Ray answers at http://127.0.0.1:1" in refusal("index", "s3://b/c", "/i")
    with pytest.raises(InputError, match="give the URL of Ray's dashboard"):
        dashboard_url("ray://head:10001")


def test_the_address_given_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert dashboard_url("head:8265/") == "http://head:8265"
    assert dashboard_url(None) == "http://other:8265"


def test_the_same_submission_has_the_same_id_and_another_has_not(tmp_path):
    one = request(set_=["training.epochs=1"])
    assert one.id == request(set_=["training.epochs=1"]).id
    assert one.id.startswith("zerogr-index-")
    others = [
        request(set_=["training.epochs=2"]),
        request(set_=["training.epochs=1"], corpus="s3://b/d"),
        request(set_=["training.epochs=1"], forwarded=["HF_TOKEN"]),
        make_request("train", (), {"data": ["/r"], "out": "/i"}),
    ]
    assert len({one.id, *(other.id for other in others)}) == 5


def test_a_run_file_travels_with_the_job_and_counts_by_what_is_in_it(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n")
    first = request("index", "s3://b/c", "/i", "--config", str(file), config=file)
    assert (first.arguments[-1], first.run_file) == (RUN_FILE, "seed = 1\n")
    assert request("index", f"--config={file}", config=file).arguments == (f"--config={RUN_FILE}",)
    file.write_text("seed = 2\n")
    assert request("index", "s3://b/c", "/i", "--config", str(file), config=file).id != first.id


def test_arguments_reach_the_shell_whole():
    words = ("s3://b/c", "/i", "--instruction", "Given a 'claim'; $(rm -rf /)")
    assert tuple(shlex.split(request("index", *words).entrypoint)[-4:]) == words


def test_a_cluster_that_can_never_hold_what_is_asked_for_is_refused():
    two = {"training": Ask(2, {"CPU": 1, "GPU": 1})}
    refuse_lacking(two, [Node({"CPU": 4, "GPU": 2})])
    refuse_lacking(two, [Node({"CPU": 4, "GPU": 1}), Node({"CPU": 4, "GPU": 1})])
    with pytest.raises(BuildError, match=r"llm asks for 8 GPU, the Ray cluster has 0; lower llm\.gpus"):
        refuse_lacking({"llm": Ask(1, {"CPU": 1, "GPU": 8})}, [Node({"CPU": 4})])
    with pytest.raises(BuildError, match="has 4, 2 of them on its largest node"):
        refuse_lacking({"llm": Ask(1, {"GPU": 4})}, [Node({"GPU": 2}), Node({"GPU": 2})])
    with pytest.raises(BuildError, match="training asks for 3 times 1 GPU, the Ray cluster has 2"):
        refuse_lacking({"training": Ask(3, {"GPU": 1})}, [Node({"GPU": 2})])
    with pytest.raises(BuildError, match=r"asks for 2 CPU and 1 GPU on one node, .*have 4 CPU, 0 GPU; 1 CPU, 1 GPU"):
        refuse_lacking({"llm": Ask(1, {"CPU": 2, "GPU": 1})}, [Node({"CPU": 4}), Node({"CPU": 1, "GPU": 1})])
    pools = [Node({"CPU": 4}, {"pool": "cpu"}), Node({"CPU": 4, "GPU": 1}, {"pool": "l40s"})]
    refuse_lacking({"llm": Ask(1, {"GPU": 1}, {"pool": "l40s"})}, pools)
    refuse_lacking({"llm": Ask(1, {"GPU": 1}, {"pool": "!cpu"})}, pools)
    with pytest.raises(BuildError, match="nodes labelled pool=a100, the Ray cluster has pool=cpu, pool=l40s"):
        refuse_lacking({"llm": Ask(1, {"GPU": 1}, {"pool": "a100"})}, pools)
    with pytest.raises(BuildError, match="asks for 1 GPU on nodes labelled pool=cpu, the Ray cluster has 0"):
        refuse_lacking({"llm": Ask(1, {"GPU": 1}, {"pool": "cpu"})}, pools)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_log_comes_apart_into_result_and_the_rest_however_it_is_cut(capsys, tmp_path, size):
    log = tmp_path / "log"
    with log.open("w") as file:
        print("zerogr: a notice", file=file)
        out = Marked(file)
        print("a: 10%", end="", file=file)
        print(json.dumps({"hits": ["ä"]}, indent=1), file=out)
        print("end", end="", file=out)
        out.finish()
        print("training: 100% [00:01<00:00]", file=file)
    text, printer = log.read_text(), LogPrinter()
    for start in range(0, len(text), size):
        printer.feed(text[start : start + size])
    said = capsys.readouterr()
    assert said.out == '{\n "hits": [\n  "\\u00e4"\n ]\n}\nend\n'
    assert said.err == "zerogr: a notice\na: 10%training: 100% [00:01<00:00]\n"


def test_the_exit_status_is_the_remote_commands():
    def ended(status, code=None, message=""):
        assert status in ENDED
        return Job("zerogr-index-1", "index", status, 0.0, 1.0, code, message)

    assert outcome(ended("SUCCEEDED", 0), "") == (0, None)
    assert outcome(ended("FAILED", 2), "zerogr: no such corpus") == (2, None)
    assert outcome(ended("FAILED", 1), "/usr/bin/python: No module named zerogr_ray")[0] == 2
    assert "no command `python`" in outcome(ended("FAILED", 127), "")[1]
    assert outcome(ended("FAILED", -9), "") == (1, "zerogr-index-1 was killed (status -9); submit it again to go on")
    assert "supervisor died" in outcome(ended("FAILED", None, "trace\nsupervisor died"), "")[1]
    assert outcome(ended("STOPPED"), "")[0] == 1


def test_the_cluster_refuses_another_version_of_this_package():
    done = subprocess.run(
        [sys.executable, "-m", "zerogr_ray.jobs.remote", "0.0.0", "index", "/c", "/i"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("zerogr: submitted by zerogr_ray 0.0.0, the cluster has ")
