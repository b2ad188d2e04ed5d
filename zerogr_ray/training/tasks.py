"""What is learned: how a row of a training set becomes a prompt and its answer. One loop trains all three.

Prompts are those that the same model is asked later: of the retriever when it searches, of the generators when they
write docids and pseudo-queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zerogr_ray.config import DocIdConfig, QueryConfig
from zerogr_ray.docids.generate import docid_prompt, show
from zerogr_ray.queries.generate import query_prompt
from zerogr_ray.queries.kinds import KIND_PROMPTS, PROMPTS, kind_of

if TYPE_CHECKING:
    from zerogr_ray.chat import PromptFormat

Row = tuple[Any, ...]
"""The values of a task's columns."""


class Task(Protocol):
    """One thing to learn. A frozen value: it travels to the workers and into the fingerprint of a training."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The string columns of a shard that a row is made of; the last one is the answer, the one before it names
        the row in messages."""
        ...

    def ask(self, fmt: PromptFormat, rows: Sequence[Row]) -> list[str]:
        """The prompt of each row, as text up to where the answer begins."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that changes the prompts, as JSON values."""
        ...


@dataclass(frozen=True)
class Retrieve:
    """Query to docid. With instruction None every row brings its own."""

    instruction: str | None
    query_tokens: int
    name: ClassVar[str] = "retriever"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("query", "docid") if self.instruction is not None else ("instruction", "query", "docid")

    def ask(self, fmt: PromptFormat, rows: Sequence[Row]) -> list[str]:
        own = [row[0] if self.instruction is None else self.instruction for row in rows]
        cut = [fmt.shorten(row[-2], self.query_tokens) for row in rows]
        return [fmt.render(instruction, query) for instruction, query in zip(own, cut, strict=True)]

    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LearnQueries:
    """Instruction and document to query."""

    cfg: QueryConfig
    name: ClassVar[str] = "queries"
    columns: ClassVar[tuple[str, ...]] = ("instruction", "title", "text", "query")

    def ask(self, fmt: PromptFormat, rows: Sequence[Row]) -> list[str]:
        return [
            query_prompt(
                fmt, self.cfg, kind_of(query, instruction), instruction, show(title, text, fmt, self.cfg.doc_tokens)
            )
            for instruction, title, text, query in rows
        ]

    def settings(self) -> dict[str, Any]:
        settings = {name: getattr(self.cfg, name) for name in ("prompt", "doc_tokens", "examples")}
        return settings if self.cfg.prompt else {**settings, KIND_PROMPTS: PROMPTS}


@dataclass(frozen=True)
class LearnDocIds:
    """Document to docid."""

    cfg: DocIdConfig
    name: ClassVar[str] = "docids"
    columns: ClassVar[tuple[str, ...]] = ("title", "text", "docid")

    def ask(self, fmt: PromptFormat, rows: Sequence[Row]) -> list[str]:
        return [docid_prompt(fmt, self.cfg, title, text) for title, text, _ in rows]

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self.cfg, name) for name in ("prompt", "doc_tokens", "examples")}
