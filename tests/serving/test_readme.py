"""The README's curl lines and Python lines work as printed, against a service of another index on another port."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.service import served, settings, tiny_index
from zerogr_ray.serving.client import Client

CURL = pytest.mark.skipif(not shutil.which("curl"), reason="no curl: apt-get install curl")
pytestmark = [pytest.mark.model, CURL]

README = (Path(__file__).parents[2] / "README.md").read_text()
LINES = re.findall(r"^curl .*$", README, re.MULTILINE)


def test_every_curl_line_is_answered(tmp_path):
    assert len(LINES) >= 6
    with served(settings(tiny_index(tmp_path / "index"), tmp_path / "state")) as (client, _):
        for line in LINES:
            command = shlex.split(line.replace("localhost:8000", f"127.0.0.1:{client.base_url.port}"))
            ran = subprocess.run([*command, "-sS", "--fail-with-body"], capture_output=True, text=True, timeout=60)
            assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            if "stream" in line:
                assert ran.stdout.startswith("event: hit\ndata: {")
                assert "event: done" in ran.stdout
            else:
                assert "error" not in json.loads(ran.stdout)


def test_the_python_lines_run(tmp_path):
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "serving.client" in b)
    with served(settings(tiny_index(tmp_path / "index"), tmp_path / "state")) as (client, _):
        with Client(str(client.base_url)) as other:
            other.add("faq-7", docid="red fox web")
        exec(block.replace("http://localhost:8000", str(client.base_url)), {"print": lambda *_: None})
        with Client(str(client.base_url)) as other:
            assert "faq-7" not in [hit.docno for hit in other.search("fox", k=100)]
