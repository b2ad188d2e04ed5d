"""LoRA adapters as folders: a few megabytes that turn one certain base model into a generator or a retriever.

folder/adapter_model.safetensors   A and B of every adapted layer, under peft's names
folder/adapter_config.json         peft's own description, for peft and vLLM
folder/zerogr.json                 task, base model by what it holds, prompt settings, how it was trained
folder/README.md                   model card

Using one needs no peft: it is merged into its base once, in the cache. Nothing in the folder is code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from zerogr_ray.cache import cache_folder, here, making
from zerogr_ray.config import DocIdConfig, QueryConfig
from zerogr_ray.errors import ModelError
from zerogr_ray.models import find_model, load_format, load_model
from zerogr_ray.published import current
from zerogr_ray.queries.kinds import KIND_PROMPTS, PROMPTS
from zerogr_ray.s3 import is_url, place_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T", DocIdConfig, QueryConfig)

ABOUT = "zerogr.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FORMAT = 1

SHIPPED = Path(__file__).with_name("shipped")
"""Adapters of packaged models, trained with `zerogr train`: <model>-<task>/."""

_PREFIX = "base_model.model."
_BEYOND_LORA = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices")
"""Settings of peft that change what A and B mean; `zerogr train` writes none of them."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder says of itself."""

    folder: Path
    task: str
    """queries, docids or retriever."""
    base: str
    """Name of the base model, for messages; `weights` and `prompt_format` identify it."""
    weights: str
    prompt_format: str
    settings: dict[str, Any]
    """Prompt settings that it was trained under; use it with the same."""
    scale: float
    """alpha / rank."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the merged model."""
        with (self.folder / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(json.dumps([self.weights, self.scale]).encode())
        return digest.hexdigest()[:16]


def chosen_adapter(setting: str, model: str, task: str) -> str:
    """The adapter folder that `setting` means for `model`; "" for none. auto is the one that this package ships."""
    if setting != "auto":
        return setting
    shipped = SHIPPED / f"{model}-{task}"
    return str(shipped) if (shipped / ABOUT).is_file() else ""


def describe_base(name: str, folder: Path) -> dict[str, str]:
    """What zerogr.json says of the base model in `folder`."""
    return {"name": name, "weights": weights_fingerprint(folder), "prompt_format": load_format(folder).fingerprint}


def weights_fingerprint(folder: Path) -> str:
    """sha256 over names, types, shapes and values of all tensors of a model.

    Unlike models.fingerprint it stays the same when another version of transformers writes the same model: its
    config.json names that version.
    """
    from safetensors import safe_open

    tensors: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors.update(dict.fromkeys(opened.keys(), file))
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        with safe_open(tensors[name], framework="pt") as opened:
            tensor = opened.get_tensor(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_adapter(folder: str | Path) -> Adapter:
    """What the adapter in `folder` says of itself. Raises ModelError where the folder is not an adapter of ours."""
    path = _fetched(place_of(folder)) if is_url(folder) else Path(folder).expanduser()
    for name in (WEIGHTS, CONFIG, ABOUT):
        if not (path / name).is_file():
            raise ModelError(f"{path} has no {name}; an adapter is a folder that `zerogr train` has written")
    try:
        about, config = (json.loads((path / name).read_text(encoding="utf-8")) for name in (ABOUT, CONFIG))
        if about["format"] != FORMAT:
            raise ModelError(
                f"{path / ABOUT} has format {about['format']}, this version reads {FORMAT}; train it again"
            )
        base = about["base"]
        adapter = Adapter(
            folder=path,
            task=about["task"],
            base=base["name"],
            weights=base["weights"],
            prompt_format=base["prompt_format"],
            settings=about["settings"],
            scale=config["lora_alpha"] / config["r"],
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} cannot be read as an adapter: {error!r} in {ABOUT} or {CONFIG}; train it again"
        ) from None
    if used := [name for name in _BEYOND_LORA if config.get(name)]:
        raise ModelError(f"{path / CONFIG} uses {used[0]}, which is not plain LoRA; train it again with zerogr train")
    return adapter


def adapter_for(task: str, folder: str) -> Adapter:
    """What the adapter in `folder` says of itself. Raises ModelError as read_adapter, and where it has another task."""
    adapter = read_adapter(folder)
    if adapter.task != task:
        raise ModelError(f"{folder} is an adapter for {adapter.task}, not for {task}; take one that was trained for it")
    return adapter


def find_writer(table: T, model: str, task: Literal["docids", "queries"]) -> tuple[Path, T]:
    """Folder of the model that writes docids or queries by the settings `table`, and the settings it is asked with.

    That is `model` with the adapter that the settings name merged in, asked as the adapter was trained; without an
    adapter `model` and the settings as they are. Raises ModelError.
    """
    folder = chosen_adapter(table.adapter, model, task)
    if not folder:
        return find_model(model), table
    settings = dict(adapter_for(task, folder).settings)
    if settings.pop(KIND_PROMPTS, PROMPTS) != PROMPTS:
        raise ModelError(
            f"the adapter {folder} was trained with other prompts than this version asks with ({KIND_PROMPTS} in its "
            f"{ABOUT}); train it anew: zerogr train {task} DATA OUT --set model={model}"
        )
    return find_adapted_model(model, folder), table.model_copy(update=settings)


def _fetched(url: str) -> Path:
    try:
        return here(current(url))
    except FileNotFoundError:
        raise ModelError(f"{url} holds no files; an adapter is a folder that `zerogr train` has written") from None


def find_adapted_model(base: str, adapter: str | Path) -> Path:
    """Folder of the model `base` with the adapter in folder `adapter` merged in; made once, in the cache.

    Raises ModelError for an adapter that was trained for another base, or for one that has changed since.
    """
    found, model = read_adapter(adapter), find_model(base)
    refuse_other_base(found, base, model)
    target = cache_folder() / "models" / f"{model.name}-{found.task}-{found.fingerprint}"
    if not target.is_dir():
        with making(target) as building:
            merge(model, found, building)
    return target


def refuse_other_base(adapter: Adapter, base: str, model: Path) -> None:
    """Raise ModelError unless `model` holds what the adapter was trained on."""
    have = describe_base(base, model)
    for what, key in (("weights", "weights"), ("prompts", "prompt_format")):
        wanted = getattr(adapter, key)
        if have[key] != wanted:
            why = "which have changed since" if base == adapter.base else "another model"
            raise ModelError(
                f"the adapter {adapter.folder} was trained for {adapter.base} ({what} {wanted}), but {base} has {what} "
                f"{have[key]}, {why}; take its own base, or train it anew: "
                f"zerogr train {adapter.task} DATA OUT --set model={base}"
            )


def merge(model: Path, adapter: Adapter, into: Path) -> None:
    """Write the model W + alpha / r * B A in float32, with its tokenizer, to the folder `into`.

    float32, since most of what an adapter adds is smaller than the last bit of a bfloat16 weight.
    """
    import torch
    from safetensors.torch import load_file

    whole: Any = load_model(model, "float32", "cpu")
    tensors = load_file(adapter.folder / WEIGHTS)
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    wanted = {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    if not layers or set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)
        raise ModelError(f"{adapter.folder / WEIGHTS} does not hold A and B of every layer: {odd[:1]}; train it again")
    with torch.no_grad():
        for layer in sorted(layers):
            weight = _weight(whole, layer, adapter)
            change = tensors[f"{layer}.lora_B.weight"].float() @ tensors[f"{layer}.lora_A.weight"].float()
            transposed = type(whole.get_submodule(layer.removeprefix(_PREFIX))).__name__ == "Conv1D"
            change = change.T if transposed else change
            if change.shape != weight.shape:
                raise ModelError(
                    f"{adapter.folder}: {layer} is {tuple(change.shape)}, in {model} {tuple(weight.shape)}; "
                    "it is an adapter for another model"
                )
            weight += adapter.scale * change
    whole.save_pretrained(into)
    load_format(model).tokenizer.save_pretrained(into)


def _weight(model: Any, layer: str, adapter: Adapter) -> torch.Tensor:
    try:
        weight: torch.Tensor = model.get_submodule(layer.removeprefix(_PREFIX)).weight
    except AttributeError:
        raise ModelError(f"{adapter.folder} adapts {layer}, which the model has not; it is for another model") from None
    return weight
