"""What is left of a training that diverged: the batch whose loss or gradient is no number.

FOLDER/diverged-00000120-1.jsonl   rank 1's share of the batch of step 120, one example a line:
                                   {"suspect", "query", "prompt", "answer", "wrong"}

Suspects are the examples that were computed together with the number that is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.store import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zerogr_ray.training.batches import Pack
    from zerogr_ray.training.examples import Example

SHOWN = 3
"""Examples, and files, that the message names."""


@dataclass(frozen=True)
class Evidence:
    """Where rank `rank` of `world` leaves the examples of a step after which training cannot go on."""

    folder: Folder
    tokenizer: PreTrainedTokenizerBase
    rank: int
    world: int

    def refusal(
        self, what: str, value: float, step: int, packs: Sequence[Pack], suspects: Sequence[bool]
    ) -> BuildError:
        """The same error on every rank, each of which has to call it with its own packs of the step.

        A rank without a suspect pack writes nothing. All wait here for each other: the first that fails would take
        along those that still write.
        """
        examples = [(e, suspect) for one, suspect in zip(packs, suspects, strict=True) for e in one.examples]
        shown = [repr(e.query[:60]) for e, suspect in examples if suspect][:SHOWN]
        found = [mine for mine in self._of_all_ranks((shown, self._kept(step, examples) if shown else "")) if mine[0]]
        queries = [query for some, _ in found for query in some][:SHOWN]
        files = [file for _, file in found]
        more = f" and {len(files) - SHOWN} more beside it" if len(files) > SHOWN else ""
        return BuildError(
            f"training diverged: the {what} of step {step} is {value} on examples such as {', '.join(queries)}; the "
            f"batch is in {', '.join(files[:SHOWN])}{more}: look for texts that do not belong there, or lower "
            "training.learning_rate or training.clip, and run again"
        )

    def _kept(self, step: int, examples: Sequence[tuple[Example, bool]]) -> str:
        """The file that now holds these examples; why there is none where it cannot be written."""
        name = f"diverged-{step:08d}-{self.rank}.jsonl"
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
        rows = [
            {
                "suspect": suspect,
                "query": e.query,
                "prompt": decode(e.prompt),
                "answer": decode(e.answer),
                "wrong": [decode(wrong) for wrong in e.wrong],
            }
            for e, suspect in examples
        ]
        try:
            self.folder.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        except (OSError, InputError) as error:
            return f"{self.folder.url_of(name)} (not written: {error})"
        return self.folder.url_of(name)

    def _of_all_ranks(self, mine: tuple[list[str], str]) -> list[tuple[list[str], str]]:
        if self.world == 1:
            return [mine]
        import torch.distributed as dist

        found: list[tuple[list[str], str]] = [mine] * self.world
        dist.all_gather_object(found, mine)
        return found
