"""The decoding modes that a report sets side by side, each written as settings joined by "+"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from zerogr_ray.config import DecodeConfig, make_config
from zerogr_ray.errors import InputError

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.index.bundle import Bundle

MODES: tuple[str, ...] = get_args(DecodeConfig.model_fields["mode"].annotation)
OWN = "index"
"""Stands for the settings that the build of an index chose for it."""
USUAL = ("reference", "exact", "sampling", "beam", "top_k", "best_first", "reference+order=docid")
PLANNED = 200
"""Documents that plan-ahead leaves to the search, in the row that a report adds for it; a quarter of a small index."""
IN_FULL = 1000
"""Documents of an index up to which a report scores every docid in full: that is the yardstick, and slow."""


def parse_mode(text: str, base: DecodeConfig, own: Mapping[str, Any] | None = None) -> DecodeConfig:
    """`top_k`, `reference+order=docid`, `exact+t_max=2`: a mode, or settings, joined by "+", over those of `base`.

    `index` stands for `own`, the settings that an index's build chose; what is written out wins over them. Raises
    InputError for a mode or a setting that there is not, naming the nearest, and for a value it cannot have.
    """
    changed: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    for part in text.split("+"):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == OWN and not equals and own:
            chosen = dict(own)
            continue
        if not equals:
            if name not in MODES:
                near = get_close_matches(name, MODES, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(f"--mode {text}: there is no mode {name!r}; {hint}choose of {', '.join(MODES)}")
            name, value = "mode", name
        if name in changed:
            raise InputError(f"--mode {text}: {name} is set twice; keep one of them")
        changed[name] = value
    return make_config(DecodeConfig, base.model_dump() | chosen, changed, where=f"--mode {text}")


def usual_modes(bundle: Bundle) -> list[str]:
    """What a report shows unless told: the modes that every index has, and those that this one carries data for."""
    modes = [OWN, *USUAL] if bundle.manifest.get("decode") else list(USUAL)
    if "exhaustive" not in left_out(bundle):
        modes.append("exhaustive")
    prior = "+prior_weight=1" if bundle.priors is not None else ""
    if prior:
        modes += [f"reference{prior}", f"reference{prior}+order=docid"]
    if bundle.postings is not None:
        planned = f"reference{prior}+plan_ahead={max(1, min(PLANNED, bundle.trie.documents // 4))}"
        modes += [planned, f"{planned}+order=docid"]
    if bundle.manifest.get("rerank_token") is not None:
        modes.append("reference+order=rerank")
    return modes


def left_out(bundle: Bundle) -> dict[str, str]:
    """Modes that `usual_modes` leaves out, and why: whole sentences for the page."""
    documents = bundle.trie.documents
    if documents <= IN_FULL:
        return {}
    why = f"it scores every docid in full, for every query, and the index has {documents} documents, over {IN_FULL}."
    return {"exhaustive": f"{why} Name all modes that you want to have it: --mode reference --mode exhaustive."}


def check_modes(retriever: Retriever, texts: Sequence[str], base: DecodeConfig) -> dict[str, DecodeConfig]:
    """The configuration of each mode, in order. Raises InputError for one that this index cannot answer."""
    from zerogr_ray.decoding.job import Request

    modes: dict[str, DecodeConfig] = {}
    for text in texts:
        if text in modes:
            raise InputError(f"--mode {text} is given twice; give it once")
        modes[text] = parse_mode(text, base, retriever.bundle.manifest.get("decode"))
        try:
            retriever.job(Request("any", config=modes[text]))
        except InputError as error:
            raise InputError(f"--mode {text}: {error}") from None
    return modes
