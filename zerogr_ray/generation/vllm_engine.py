"""vLLM in the actor's own process: half the start-up time of a separate engine process, and no children to orphan."""

from __future__ import annotations

import os
from pathlib import Path

from zerogr_ray.config import LLMConfig
from zerogr_ray.generation.engine import Sampling
from zerogr_ray.models import load_format, pick_device, pick_dtype

CPU_CACHE_GIB = "1"
"""Key-value cache of a CPU engine: 1 GiB holds some 20,000 tokens of a 135M model in float32."""


class VLLMEngine:
    """A model in vLLM. Prefix caching computes the part of the prompt that all documents of a shard share once."""

    def __init__(self, cfg: LLMConfig, model: Path) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        device, tp = pick_device(), cfg.tensor_parallel
        if device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            # Pinning to fixed cores would put every engine of a machine on the same ones.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM

        self.format = load_format(model)
        self.llm = LLM(
            model=str(model),
            dtype=str(pick_dtype(cfg.dtype, device)).removeprefix("torch."),
            max_model_len=cfg.max_model_len,
            max_num_seqs=cfg.max_num_seqs,
            enforce_eager=device == "cpu",  # compiling costs a CPU engine more than a small job takes
            disable_log_stats=True,
            # Not Ray's executor: the GPUs are this actor's, and Ray would look for others.
            **({"tensor_parallel_size": tp, "distributed_executor_backend": "mp"} if tp > 1 else {}),
            # Whole blocks are shared: the CPU's default of 128 tokens leaves much of our common prefix to each prompt.
            **({"block_size": 32} if device == "cpu" else {}),
        )

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
        """`sampling.n` texts for each prompt; see Engine."""
        import torch
        from vllm import SamplingParams, TokensPrompt

        # Seeds per request break on a CPU (its generator cannot be wound back after a chunked prefill), so the
        # process-wide generator is seeded instead; the engine lives in this process.
        torch.manual_seed(seed)
        # A prefix from the cache and one computed with the batch differ by roundings, and one other token shifts all
        # that is drawn after it. So nothing stays of the shards before: which they were is chance.
        self.llm.reset_prefix_cache()
        answers = self.llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                stop_token_ids=[self.format.end],
            ),
            use_tqdm=False,
        )
        return [[output.text for output in answer.outputs] for answer in answers]

    def close(self) -> None:
        """Give the memory back."""
        self.llm.llm_engine.engine_core.shutdown()
