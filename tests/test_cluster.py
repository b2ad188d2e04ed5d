"""What a machine has, and how processes share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from zerogr_ray.cluster import _cpu_limit, cores


@pytest.fixture
def groups(tmp_path):
    """A cgroup v2 tree: the process in /pods/one, which grants 1.5 cores, under /pods, which grants 4."""
    (tmp_path / "cgroup").write_text("3:cpuset:/\n0::/pods/one\n")
    (tmp_path / "fs/pods/one").mkdir(parents=True)
    (tmp_path / "fs/pods/cpu.max").write_text("400000 100000\n")
    (tmp_path / "fs/pods/one/cpu.max").write_text("150000 100000\n")
    return tmp_path


def test_a_containers_cpu_limit_counts_wherever_it_is_set(groups):
    assert _cpu_limit(groups / "cgroup", groups / "fs") == 1.5
    (groups / "fs/pods/one/cpu.max").write_text("max 100000\n")
    assert _cpu_limit(groups / "cgroup", groups / "fs") == 4
    (groups / "fs/pods/cpu.max").unlink()
    assert _cpu_limit(groups / "cgroup", groups / "fs") == float("inf")
    assert _cpu_limit(groups / "nothing", groups / "fs") == float("inf")


def test_the_limit_at_the_root_of_a_containers_own_tree_counts(groups):
    (groups / "cgroup").write_text("0::/\n")
    (groups / "fs/cpu.max").write_text("50000 100000\n")
    assert _cpu_limit(groups / "cgroup", groups / "fs") == 0.5


def test_cores_are_those_of_the_affinity_and_no_more():
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_engines_of_one_machine_are_bound_to_different_cores(tmp_path):
    code = (
        "import os, pathlib, sys; from zerogr_ray.cluster import pin_apart; "
        f"pin_apart(len(os.sched_getaffinity(0)) // 2, pathlib.Path({str(tmp_path)!r})); "
        "print(sorted(os.sched_getaffinity(0)), flush=True); sys.stdin.read()"
    )

    def engine():
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return process, set(json.loads(process.stdout.readline()))

    first, second = engine(), engine()
    late = engine()  # no core is left for it
    first[0].kill()
    first[0].wait()
    again = engine()
    for process, _ in (second, late, again):
        process.communicate("")
    assert not first[1] & second[1]
    assert late[1] == os.sched_getaffinity(0)
    assert again[1] == first[1], "the cores of an engine that was killed are free"
