"""BM25 leaves the GPU alone."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, sys, types
jax = types.ModuleType("jax"); lax = types.ModuleType("jax.lax"); jax.lax = lax
def top_k(values, k):
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        raise RuntimeError("no supported devices found for platform CUDA")
    return values, values
lax.top_k = top_k
sys.modules.update({"jax": jax, "jax.lax": lax})
from zerogr_ray.queries.round_trip import Finder
print(Finder({"a": ["red", "fox"], "b": ["blue", "hat"]}).rank("red fox", "a"))
"""


def test_a_worker_without_a_gpu_finds_documents_on_a_machine_whose_jax_has_one():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.returncode) == ("1", 0), found.stderr
