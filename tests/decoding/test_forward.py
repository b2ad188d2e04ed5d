"""Batched tree attention gives the logits of a plain forward over prompt + path, for every family of models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from zerogr_ray.config import CacheConfig
from zerogr_ray.decoding.cells import Cell
from zerogr_ray.decoding.forward import Prefixes, TreeForward

pytestmark = pytest.mark.model

VOCAB = 97
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 24
FAMILIES = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": WINDOW},
    "Gemma3": {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Phi": {},
    "Phi3": {"sliding_window": WINDOW},
    "Mistral": {"sliding_window": WINDOW},
    "SmolLM3": {},
}
PROMPTS = [list(range(3, 43)), [3, 4, 5, 6, 7, 90, 91], [*range(3, 20), 60, 61, 62, 63], [50]]
SHARED = [5, 5, 17, 0]
"""How many of each prompt's first tokens are a kept prefix."""


def tiny(family, dtype=torch.float32):
    name = {"Gemma3": "Gemma3ForCausalLM"}.get(family, f"{family}ForCausalLM")
    config = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = getattr(transformers, config)(**{**TINY, **FAMILIES[family]})
        return getattr(transformers, name)(made).eval().to(dtype)


def plain(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float()


def a_tree(seed, size=14):
    """Cells of a random tree: key -> (parent, token)."""
    rng = np.random.default_rng(seed)
    return {key: (int(rng.integers(0, key)), int(rng.integers(3, VOCAB))) for key in range(1, size)}


def path_of(tree, key):
    return [*path_of(tree, tree[key][0]), tree[key][1]] if key else []


def cells_of(tree, keys):
    return [Cell(key, *tree[key], np.array([5, 50, 96])) for key in keys]


def check(model, tree, b, keys, answers, atol=2e-4):
    for key, answer in zip(keys, answers, strict=True):
        expected = plain(model, [*PROMPTS[b], *path_of(tree, key)])
        np.testing.assert_allclose(answer.logits, expected[[5, 50, 96]].numpy(), atol=atol)
        np.testing.assert_allclose(answer.log_total, torch.logsumexp(expected, 0).item(), atol=atol)


def search(model, forward, shared):
    """Three waves over four prompts, one of which leaves on the way."""
    logits = forward.prompt(PROMPTS, shared)
    for prompt, row in zip(PROMPTS, logits, strict=True):
        np.testing.assert_allclose(row.numpy(), plain(model, prompt).numpy(), atol=2e-4)
    trees = [a_tree(seed) for seed in range(4)]
    for keys in (range(1, 5), range(5, 9)):
        # Not all ask for equally much.
        asked = [list(keys)[: 4 - b] if keys[0] == 1 else [k for k in keys if trees[b][k][0] < 2] for b in range(4)]
        for b, answers in enumerate(forward.wave([cells_of(trees[b], asked[b]) for b in range(4)])):
            check(model, trees[b], b, asked[b], answers)
    forward.keep([3, 0])
    asked = [[k for k in range(9, 14) if trees[b][k][0] < 2] for b in (3, 0)]
    waved = forward.wave([cells_of(trees[3], asked[0]), cells_of(trees[0], asked[1])])
    for b, keys, answers in zip((3, 0), asked, waved, strict=True):
        check(model, trees[b], b, keys, answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_attention_gives_the_logits_of_a_plain_forward(family):
    model = tiny(family)
    search(model, TreeForward(model, CacheConfig()), None)


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Mistral"])
def test_kept_prefixes_change_nothing(family):
    model = tiny(family)
    prefixes = Prefixes(model)
    first, again = (TreeForward(model, CacheConfig(), prefixes) for _ in range(2))
    search(model, first, SHARED)
    search(model, again, SHARED)
    assert first.tokens_forwarded - again.tokens_forwarded == 5 + 17  # each prefix has been forwarded once


@pytest.mark.parametrize("limits", [{"tokens_per_query": 44}, {"tokens_per_batch": 4 * 43}, {"tokens_per_query": 1}])
def test_a_small_cache_gives_the_same_answers_with_more_forwards(limits):
    model = tiny("Llama")
    plenty, little = TreeForward(model, CacheConfig()), TreeForward(model, CacheConfig(**limits))
    search(model, plenty, None)
    search(model, little, None)
    assert little.forwards > plenty.forwards == 4


def test_bfloat16_is_the_same_but_for_rounding():
    model = tiny("Llama", torch.bfloat16)
    forward = TreeForward(model, CacheConfig())
    forward.prompt(PROMPTS)
    tree = a_tree(0)
    for b, answers in enumerate(forward.wave([cells_of(tree, range(1, 9))] * 4)):
        check(model, tree, b, range(1, 9), answers, atol=0.5)
