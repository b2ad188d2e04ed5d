"""Settings of a service, its state folder, its commands: what is refused, and in which words."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zerogr_ray.cli import main
from zerogr_ray.config import make_config, read_config
from zerogr_ray.errors import IndexRefused, InputError
from zerogr_ray.serving.config import ServiceConfig, is_loopback, service_of
from zerogr_ray.serving.keys import Keys, read_keys
from zerogr_ray.serving.state import ALIVE, Beat, State, VersionRef, Versions

SERVE = Path(__file__).parents[2] / "serve"


def command(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the zerogr command in this process."""
    monkeypatch.setattr(sys, "argv", ["zerogr", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_a_folder_names_its_index_and_its_state(tmp_path):
    made = service_of([str(tmp_path / "My Docs"), f"faq={tmp_path}/f"], None)
    assert made == {
        "indexes": {"my-docs": str(tmp_path / "My Docs"), "faq": str(tmp_path / "f")},
        "state": str(tmp_path / "My Docs.serving"),
    }
    with pytest.raises(InputError, match="two indexes are called 'a'"):
        service_of(["x/a", "y/a"], None)
    with pytest.raises(InputError, match="cannot name an index"):
        service_of(["../x=" + str(tmp_path)], None)


def test_the_service_files_of_the_repository_are_valid():
    import yaml

    cfg = read_config(SERVE / "service.toml", ServiceConfig)
    assert cfg.default == "docs"
    said = yaml.safe_load((SERVE / "service.yaml").read_text())
    (application,) = said["applications"]
    assert make_config(ServiceConfig, application["args"]).at_most == 8
    assert application["import_path"] == "serve.app:app"


def test_the_dashboard_asks_for_metrics_that_there_are():
    pytest.importorskip("torch")
    from zerogr_ray.serving.watching import METRICS

    text = (SERVE.parent / "infra" / "grafana-search.json").read_text()
    asked = {re.sub("_(bucket|total)$", "", name) for name in re.findall(r"ray_(zerogr_\w+)", text)}
    assert asked == METRICS.keys()


def test_a_wrong_setting_is_refused_by_its_name():
    with pytest.raises(InputError, match=r"unknown key 'limits\.kk'"):
        make_config(ServiceConfig, {"indexes": {"a": "b"}, "state": "s", "limits": {"kk": 1}})
    with pytest.raises(InputError, match="indexes"):
        make_config(ServiceConfig, {"indexes": {"../a": "b"}, "state": "s"})


def test_loopback_is_known():
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_the_state_folder_keeps_versions_and_says_when_it_is_damaged(tmp_path):
    state, other = State(tmp_path), State(tmp_path)
    assert state.versions() == {}
    first, second = VersionRef("/a", "1"), VersionRef("/b", "2")
    state.change("docs", lambda known: known or Versions(first))
    other.change("docs", lambda known: replace(known, candidate=second))
    assert state.versions() == {"docs": Versions(first, None, second)}
    (tmp_path / "versions.json").write_text("{")
    with pytest.raises(IndexRefused, match=r"versions\.json is damaged"):
        state.versions()


def test_replicas_are_alive_while_they_say_so(tmp_path):
    state = State(tmp_path)
    beats = [Beat(name, pid, {"docs": "1"}) for name, pid in (("a", 1), ("b", 2), ("c", 3))]
    for beat in beats:
        state.beat(beat)
    assert state.alive() == beats
    state.gone("a")
    silent = tmp_path / "replicas" / "b.json"
    os.utime(silent, (time.time() - ALIVE - 1,) * 2)
    assert state.alive() == beats[2:]


def test_the_key_command_prints_a_key_that_works(monkeypatch, capsys, tmp_path):
    file = tmp_path / "keys.json"
    status, out, _ = command(monkeypatch, capsys, "key", "site", "--file", file, "--right", "search")
    assert status == 0
    assert Keys(read_keys(file)).find(out.strip()).name == "site"
    status, _, err = command(monkeypatch, capsys, "key", "site", "--file", file)
    assert status == 2
    assert "already" in err


def test_serve_refuses_with_one_sentence(monkeypatch, capsys, tmp_path):
    for arguments, said in (
        ([], "give the folder of an index"),
        ([tmp_path / "none", "--activate", tmp_path], "knows no index 'none'"),
        ([tmp_path / "none", "--rollback"], "no version before"),
        ([tmp_path / "none", "--compact", tmp_path / "v2"], "knows no index 'none'"),
        ([tmp_path / "none", "--rollback", "--compact", tmp_path / "v2"], "exclude each other"),
        ([tmp_path / "none", "--set", "limits.kk=1"], "limits.kk"),
    ):
        status, _, err = command(monkeypatch, capsys, "serve", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
