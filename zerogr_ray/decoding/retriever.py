"""A retriever: an index and its model, ready to search. Needs torch and transformers, not Ray."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import CacheConfig, DecodeConfig
from zerogr_ray.decoding.gists import query_prompts
from zerogr_ray.decoding.job import Job, Prompt, Request
from zerogr_ray.errors import IndexRefused, InputError
from zerogr_ray.index.bundle import Bundle, open_index, writing_index
from zerogr_ray.index.live import LiveIndex
from zerogr_ray.memory import keep_freed_memory
from zerogr_ray.models import DType, load_format, load_model
from zerogr_ray.rows import Hit

if TYPE_CHECKING:
    import torch

    from zerogr_ray.decoding.cells import Answer, Cell
    from zerogr_ray.decoding.forward import TreeForward


KEPT = 1 << 25, 1 << 29
"""Bytes of a block and in all that a search on a CPU keeps for the next: a batch's activations are megabytes each."""


class Retriever:
    """Search an index. Make one with Retriever.load. Searches run in one thread at a time; add and remove in any."""

    def __init__(
        self, bundle: Bundle, model: Any, prompt_format: PromptFormat, cache: CacheConfig | None = None
    ) -> None:
        from zerogr_ray.decoding.forward import Prefixes

        self.bundle, self.model, self.format = bundle, model, prompt_format
        self.cache = cache or CacheConfig()
        self.live = LiveIndex(bundle, prompt_format.end)
        self._prefixes = Prefixes(model)
        self._shared: dict[tuple[str, str], tuple[int, ...]] = {}

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", dtype: DType = "auto", cache: CacheConfig | None = None
    ) -> Retriever:
        """Verify and load the index folder at `path`, which may be under s3://.

        Raises IndexRefused where a file is missing or damaged, or the tokenizer is not the one it was built with.
        """
        return cls.open(open_index(path), device, dtype, cache)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        device: str = "auto",
        dtype: DType = "auto",
        cache: CacheConfig | None = None,
        model: Any = None,
    ) -> Retriever:
        """The retriever of an open index; with `model`, one that is loaded already. Raises IndexRefused as `load`."""
        prompt_format = load_format(bundle.model)
        built_with = bundle.manifest["prompt_format"]
        if prompt_format.fingerprint != built_with:
            raise IndexRefused(
                f"{bundle.path} was built with prompt format {built_with}, but its tokenizer now gives "
                f"{prompt_format.fingerprint}; install the transformers version it was built with, or build it again"
            )
        model = model or load_model(bundle.model, dtype, device)
        if model.device.type == "cpu":
            keep_freed_memory(*KEPT)
        return cls(bundle, model, prompt_format, cache)

    def search(
        self,
        query: str,
        k: int = 10,
        instruction: str | None = None,
        config: DecodeConfig | None = None,
        docnos: Sequence[str] | None = None,
    ) -> list[Hit]:
        """The best `k` documents for `query`, best first; fewer if the corpus, or `docnos`, has fewer.

        Raises InputError for k < 1, an empty query, and unknown docnos.
        """
        return self.answer([Request(query, k, instruction, config, docnos)])[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        instruction: str | Sequence[str] | None = None,
        config: DecodeConfig | None = None,
    ) -> list[list[Hit]]:
        """Hits for each query. `instruction` is one for all, one for each, or None for the one of the index."""
        asked = [instruction] * len(queries) if isinstance(instruction, (str, type(None))) else list(instruction)
        if len(asked) != len(queries):
            raise InputError(f"{len(queries)} queries came with {len(asked)} instructions; give one, or one for each")
        return self.answer([Request(query, k, task, config) for query, task in zip(queries, asked, strict=True)])

    def answer(self, requests: Sequence[Request]) -> list[list[Hit]]:
        """Hits for each request, whatever its k, instruction, configuration and filter; many share a batch."""
        jobs = [self.job(request, number, len(requests)) for number, request in enumerate(requests)]
        prompts = [self.prompt(job) for job in jobs]
        # Queries of like length share a batch, so that little is padding.
        order = sorted(range(len(jobs)), key=lambda i: len(prompts[i][0]))
        for start in range(0, len(order), self.cache.batch):
            chosen = order[start : start + self.cache.batch]
            decode(self.forward(), [jobs[i] for i in chosen], [prompts[i] for i in chosen])
        return [job.hits() for job in jobs]

    def stream(
        self,
        query: str,
        instruction: str | None = None,
        config: DecodeConfig | None = None,
        docnos: Sequence[str] | None = None,
        k: int | None = None,
    ) -> Iterator[Hit]:
        """The next hit, and the next, in the order in which they are drawn: the caller stops when it has enough.

        With `k`, the temperature follows the schedule of a search for k documents. Without, every draw is at
        config.temperature (mode sampling), and hits come until the corpus is exhausted.
        """
        steady = {} if k else {"mode": "sampling"}
        most = k or self.live.view.entries or 1
        job = self.job(Request(query, most, instruction, config, docnos, steady, streamed=True))
        return self._stream(job, self.prompt(job))

    def add(self, docnos: Sequence[str], docids: Sequence[str], titles: Sequence[str] | None = None) -> None:
        """Let the next search find these documents under these docids. A docno that is there is replaced."""
        self.live.add(docnos, docids, self.format.docids(docids), titles or [""] * len(docnos))

    def remove(self, docnos: Sequence[str]) -> None:
        """Let no later search find these documents. Raises InputError for a docno that is not there."""
        self.live.remove(docnos)

    def compact(self, out: str | Path) -> None:
        """Write what is searched now, additions in and removals out, as a new index to the folder `out`.

        Edge priors are measured again, as its build did it. Raises BuildError if nothing is left.
        """
        from zerogr_ray.decoding.priors import MeasurePriors, measure_here

        manifest = self.bundle.manifest
        task = MeasurePriors(manifest["instruction"], tuple(manifest.get("calibration", ())))
        measure = partial(measure_here, model=self.model, prompt_format=self.format, task=task)
        with writing_index(out) as folder:
            self.live.compact(folder, measure if task.texts else None)

    def _stream(self, job: Job, prompt: Prompt) -> Iterator[Hit]:
        given = 0
        for _ in steps(self.forward(), [job], [prompt]):
            hits = job.hits()  # those that are certain so far
            yield from hits[given:]
            given = max(given, len(hits))
        yield from job.hits()[given:]

    def forward(self) -> TreeForward:
        """The model over a new, empty cache: what `steps` runs a batch of jobs on."""
        from zerogr_ray.decoding.forward import TreeForward

        return TreeForward(self.model, self.cache, self._prefixes)

    def job(self, request: Request, number: int = 0, of: int = 1) -> Job:
        """The request as a job of a batch, on the index as it is now. Raises InputError."""
        if request.k < 1:
            raise InputError(f"k is {request.k}; ask for at least 1 document")
        if not request.query.strip():
            which = f"query {number + 1} of {of}" if of > 1 else "the query"
            raise InputError(f"{which} is empty; write a few words")
        return Job(request, self.live, self.format)

    def prompt(self, job: Job) -> Prompt:
        """What the job asks the LM first."""
        task = job.request.instruction or str(self.bundle.manifest["instruction"])
        word = None
        if job.asks_for_word:
            word = self._shared_by(("word", task), partial(query_prompts, self.format, task), job)
        return Prompt(*self._shared_by(("docid", task), partial(self.format.prompts, task), job), word)

    def _shared_by(
        self, kind: tuple[str, str], prompts: Callable[[Sequence[str], int], list[list[int]]], job: Job
    ) -> tuple[list[int], int]:
        """Tokens of the job's prompt, and how many of the first are the same for all queries with this instruction."""
        tokens = prompts([job.request.query], job.cfg.query_tokens)[0]
        shared = self._shared.get(kind)
        if shared is None:
            one, other = prompts(["a", "7"], 8)
            same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            self._shared = {kind: tuple(one[:same]), **dict(list(self._shared.items())[:63])}
            shared = self._shared[kind]
        fits = len(shared) < len(tokens) and tuple(tokens[: len(shared)]) == shared
        return tokens, len(shared) if fits else 0


def decode(forward: TreeForward, jobs: Sequence[Job], prompts: Sequence[Prompt]) -> None:
    """Run the jobs to their end in one batch; prompts[b] is what Retriever.prompt gives for jobs[b]."""
    for _ in steps(forward, jobs, prompts):
        pass


def steps(forward: TreeForward, jobs: Sequence[Job], prompts: Sequence[Prompt]) -> Iterator[None]:
    """As `decode`, pausing after each wave."""
    words = [(job, prompt.word) for job, prompt in zip(jobs, prompts, strict=True) if prompt.word is not None]
    if words:
        _plan([job for job, _ in words], forward.prompt(*zip(*(word for _, word in words), strict=True)))
    logits = forward.prompt([prompt.tokens for prompt in prompts], [prompt.shared for prompt in prompts])
    by_docid = [b for b, job in enumerate(jobs) if job.cfg.plan_ahead and prompts[b].word is None]
    if by_docid:
        _plan([jobs[b] for b in by_docid], logits[by_docid])
    running = [job.run() for job in jobs]
    asked = [_next(run) for run in running]
    roots = [b for b, cells in enumerate(asked) if cells]
    answers = [[answer] for answer in forward.read(logits[roots], [asked[b][0].read for b in roots])] if roots else []
    if len(roots) < len(jobs) and roots:
        forward.keep(roots)
    running = [running[b] for b in roots]
    while running:
        asked = [_next(run, said) for run, said in zip(running, answers, strict=True)]
        going = [b for b, cells in enumerate(asked) if cells]
        if 4 * len(going) <= 3 * len(running):  # leaving costs a copy of the cache of those that stay
            if going:
                forward.keep(going)
            running, asked = [running[b] for b in going], [asked[b] for b in going]
        yield
        totals = any(job.over_vocabulary for job in jobs)
        answers = forward.wave(asked, totals) if running else []


def _plan(jobs: Sequence[Job], logits: torch.Tensor) -> None:
    """Let each job plan with its row of `logits`."""
    for job, next_logprobs in zip(jobs, logits.log_softmax(-1).cpu().numpy(), strict=True):
        job.plan(next_logprobs)


def _next(run: Generator[list[Cell], list[Answer], None], answers: list[Answer] | None = None) -> list[Cell]:
    """What a job asks for next; nothing when it has ended."""
    try:
        return next(run) if answers is None else run.send(answers)
    except StopIteration:
        return []
