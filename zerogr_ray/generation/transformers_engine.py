"""Plain transformers, for machines where vLLM cannot be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zerogr_ray.config import LLMConfig
from zerogr_ray.generation.engine import Sampling
from zerogr_ray.models import load_format, load_model


class TransformersEngine:
    """A model in transformers. Prompts of like length share a batch, so that little is padding."""

    def __init__(self, cfg: LLMConfig, model: Path) -> None:
        self.format = load_format(model)
        self.model: Any = load_model(model, cfg.dtype)
        self.batch = cfg.max_num_seqs

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
        """`sampling.n` texts for each prompt; see Engine."""
        import torch

        torch.manual_seed(seed)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        rows = max(1, self.batch // sampling.n)
        texts: list[list[str]] = [[] for _ in prompts]
        for start in range(0, len(by_length), rows):
            chosen = by_length[start : start + rows]
            answers = self._batch([prompts[i] for i in chosen], sampling)
            for position, i in enumerate(chosen):
                texts[i] = answers[position * sampling.n : (position + 1) * sampling.n]
        return texts

    def _batch(self, prompts: list[list[int]], sampling: Sampling) -> list[str]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        pad = self.format.end
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # A configuration of its own: a model's generation_config may bring penalties that vLLM is not told of.
        how = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=sampling.n,
            eos_token_id=self.format.end,
            pad_token_id=pad,
            do_sample=sampling.temperature > 0,
        )
        if sampling.temperature > 0:
            how.update(temperature=sampling.temperature, top_p=1.0, top_k=0)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=how,
            )
        return list(self.format.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))

    def close(self) -> None:
        """Give the memory back."""
        del self.model
