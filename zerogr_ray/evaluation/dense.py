"""The dense baseline: a sentence encoder and exact cosine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.errors import InputError, ModelError
from zerogr_ray.models import DEFAULT_ENCODER, find_model, load_tokenizer, pick_device
from zerogr_ray.rows import Document, Query, Run
from zerogr_ray.stage import progress

Encoder = Callable[[list[str]], NDArray[np.float32]]
"""n texts to their unit vectors, shape (n, width)."""

BATCH = 32
WINDOW = 4096
"""Documents read, sorted by length and scored at a time: what memory holds of a corpus."""


def dense(documents: Iterable[Document], queries: list[Query], k: int, encoder: Encoder, quiet: bool = False) -> Run:
    """The k documents nearest to each query by cosine, exactly: every query against every document.

    Title and text are one text. Neither instructions are read nor prefixes added, which some encoders were trained
    with ("query: "): their figures stand below what they can do.

    Raises InputError if there are no documents.
    """
    q_QH = embed([query.text for query in queries], encoder) if queries else np.zeros((0, 0), np.float32)
    docnos: list[str] = []
    best_QK = np.zeros((len(queries), 0), np.float32)
    where_QK = np.zeros((len(queries), 0), np.int64)
    rows = iter(documents)
    with progress("encode", None, unit="docs", quiet=quiet) as bar:
        while window := list(islice(rows, WINDOW)):
            places = np.arange(len(docnos), len(docnos) + len(window))
            docnos += [document.docno for document in window]
            if not queries:
                continue
            texts = [f"{document.title} {document.text}".strip() for document in window]
            scores = np.hstack([best_QK, q_QH @ embed(texts, encoder, bar.update).T])
            where = np.hstack([where_QK, np.tile(places, (len(queries), 1))])
            # Stable: of equal documents at the cut the first ones stay.
            kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best_QK, where_QK = (np.take_along_axis(array, kept, axis=1) for array in (scores, where))
    if not docnos:
        raise InputError("the dense baseline needs at least one document; the corpus has none")
    return {
        query.qid: {docnos[place]: float(score) for place, score in zip(where, best, strict=True)}
        for query, where, best in zip(queries, where_QK, best_QK, strict=True)
    }


def embed(texts: list[str], encoder: Encoder, done: Callable[[int], Any] = lambda n: None) -> NDArray[np.float32]:
    """Vectors of `texts`, shape (texts, width), encoded longest first in batches of similar length.

    `done` is told of every batch's size. Raises ValueError if there are no texts.
    """
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    vectors = []
    for start in range(0, len(texts), BATCH):
        batch = [texts[i] for i in order[start : start + BATCH]]
        vectors.append(encoder(batch))
        done(len(batch))
    return np.concatenate(vectors)[np.argsort(order)]


class SentenceEncoder:
    """A sentence encoder as sentence-transformers saves it: transformer, pooling, perhaps normalisation.

    A plain transformer without `modules.json` is mean-pooled. Runs in single precision, as the published figures do.
    """

    def __init__(self, name: str = DEFAULT_ENCODER, device: str = "auto") -> None:
        """Load the encoder called `name`: the packaged one, a folder, a Hugging Face name.

        Raises ModelError for what cannot be loaded without running its code, and for modules or a pooling that are
        not known here.
        """
        from transformers import AutoModel

        folder = find_model(name)
        self.name = encoder_name(name)
        """What its row of a table is called: the last part of the encoder's name."""
        self.pooling = _pooling(folder)
        self.tokenizer: Any = load_tokenizer(folder)
        self.device = pick_device(device)
        try:
            model: Any = AutoModel.from_pretrained(
                str(folder), dtype="float32", use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"the sentence encoder in {folder} cannot be loaded: {error}") from error
        self.model = model.to(self.device).eval()
        self.max_tokens = _max_tokens(folder, self.tokenizer, model.config)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors of `texts`, shape (texts, width); a text is cut to the encoder's longest input."""
        import torch

        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, padding_side="right", return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            hidden_BTH = self.model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            if self.pooling == "cls_token":
                pooled_BH = hidden_BTH[:, 0]
            elif self.pooling == "lasttoken":
                pooled_BH = hidden_BTH[torch.arange(len(texts)), mask_BT1.squeeze(-1).sum(1) - 1]
            elif self.pooling == "max_tokens":
                pooled_BH = hidden_BTH.masked_fill(mask_BT1 == 0, -torch.inf).amax(1)
            else:
                pooled_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            return cast("NDArray[np.float32]", torch.nn.functional.normalize(pooled_BH, dim=-1).cpu().numpy())


def encoder_name(name: str) -> str:
    """What the row of the encoder `name` is called in a table: the last part of it, minilm for the default."""
    return "minilm" if name == DEFAULT_ENCODER else name.rstrip("/").rsplit("/", 1)[-1]


POOLINGS = ("mean_tokens", "cls_token", "max_tokens", "lasttoken")


def _pooling(folder: Path) -> str:
    """How the encoder in `folder` makes one vector of a text: one of POOLINGS."""
    pooling = folder / "1_Pooling"
    for module in _json(folder / "modules.json", []):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = folder / module["path"]
        elif kind not in ("Transformer", "Normalize"):
            raise ModelError(
                f"{folder} ends in a module {kind!r}; only transformer, pooling and normalisation are known"
            )
    settings = _json(pooling / "config.json", {"pooling_mode_mean_tokens": True})
    flags = {key.removeprefix("pooling_mode_"): on for key, on in settings.items() if key.startswith("pooling_mode_")}
    modes = [str(mode) for mode, on in flags.items() if on]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelError(f"{pooling} asks for the pooling {' + '.join(modes) or 'none'}; known: {', '.join(POOLINGS)}")
    return modes[0]


def _max_tokens(folder: Path, tokenizer: Any, config: Any) -> int:
    """Longest input in tokens: what sentence-transformers was told, else what tokenizer and positions allow."""
    told = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    return int(told or min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)))


def _json(path: Path, default: Any) -> Any:
    """The content of a settings file; `default` if there is none."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); copy the encoder again") from None
