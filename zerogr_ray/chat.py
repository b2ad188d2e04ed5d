"""How a query becomes a prompt and a docid becomes an answer, in the words of the model's own chat template.

Training, decoding and the index all go through `PromptFormat`, so that a retriever sees at search time exactly
the tokens it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DATE = "26 Jul 2024"
"""The day that templates with a date are told."""

ONE_WORD = 'The word is: "'
"""How an answer begins that shall be one word."""


class PromptFormat:
    """Prompt and docid tokens of one tokenizer.

    The instruction is the system message where the template has one, else the first line of the user's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, where: str = "the model") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"{where} has no chat template; take an instruction-tuned model or add chat_template.jinja"
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{where} names no end-of-turn token (eos_token) in tokenizer_config.json; set one")
        self.tokenizer: Any = tokenizer
        self.where = where
        self.system_role = self._accepts_system_role()
        try:
            self.end: int = self._end_of_turn()
        except Exception as error:  # jinja2's errors, and what a template raises itself
            raise ModelError(f"the chat template of {where} cannot be rendered: {error}") from error

    def prompts(self, instruction: str, queries: Sequence[str], query_tokens: int) -> list[list[int]]:
        """Tokens of each prompt up to where the answer begins; queries are cut to `query_tokens` tokens."""
        cut = [self.shorten(query, query_tokens) for query in queries]
        return self.tokens([self.render(instruction, query) for query in cut])

    def docids(self, docids: Sequence[str]) -> list[list[int]]:
        """Tokens of each docid as the answer begins, without the end-of-turn token."""
        return self.tokens(docids)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text as it stands: nothing added before or after."""
        return (
            [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        )

    def own_tokens(self, query: str, tokens: int) -> list[int]:
        """The query's tokens as they would stand within a sentence, the first `tokens` of them."""
        return self.tokens([f" {self.shorten(query, tokens)}"])[0]

    def render(self, instruction: str, user: str, examples: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt as text: the instruction, earlier turns (user, assistant), the user's message, an open answer.

        Where the template has no system role, every user message begins with the instruction.
        """
        head = "" if self.system_role else f"{instruction}\n\n"
        messages = [{"role": "system", "content": instruction}] if self.system_role else []
        for asked, answered in examples:
            messages += [{"role": "user", "content": head + asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": head + user})
        return self._apply(messages, add_generation_prompt=True)

    def ask_for_word(self, asked: str, instruction: str | None = None) -> str:
        """A prompt, as text, whose answer has begun and lacks one word: the model's next token begins that word."""
        if instruction is not None:
            return self.render(instruction, asked) + ONE_WORD
        return self._apply([{"role": "user", "content": asked}], add_generation_prompt=True) + ONE_WORD

    def shorten(self, text: str, tokens: int) -> str:
        """`text` cut to its first `tokens` tokens."""
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate, from an argument that is not UTF-8
        if len(text) * 4 <= tokens:  # a character is four bytes at most, a token at least one
            return text
        # A token is rarely longer than 40 characters: do not tokenise a megabyte to keep a hundred tokens.
        encoded = self.tokenizer(text[: tokens * 40], add_special_tokens=False)["input_ids"]
        if len(encoded) <= tokens:
            return text[: tokens * 40]
        return str(self.tokenizer.decode(encoded[:tokens], skip_special_tokens=True)).rstrip("\ufffd")

    @property
    def fingerprint(self) -> str:
        """Changes when the same text would become other tokens: template, vocabulary, normalisation."""
        probe = self.render("Given a query, retrieve.", "Ünïcode 東京 json.dumps 42")
        state = [probe, self.tokenizer(probe, add_special_tokens=False)["input_ids"], self.end, len(self.tokenizer)]
        return hashlib.sha256(json.dumps(state, ensure_ascii=True).encode()).hexdigest()[:16]

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """The template's text. A template that writes today's date or opens a thinking turn is asked for neither:
        prompts at search time must be those of the training, whatever the day."""
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
                date_string=DATE,
                strftime_now=lambda _format: DATE,
            )
        )

    def _accepts_system_role(self) -> bool:
        """Some templates (Gemma's) refuse a system message; some drop it without a word."""
        marker = "zerogr-system-marker"
        messages = [{"role": "system", "content": marker}, {"role": "user", "content": "q"}]
        try:
            return marker in self._apply(messages)
        except Exception:  # jinja2 raises what the template's author chose to raise
            return False

    def _end_of_turn(self) -> int:
        """The token with which the template itself closes an answer; the tokenizer's eos where it adds none."""
        probe = "zerogr-answer"
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": probe}]
        text = self._apply(messages)
        after = self.tokenizer(text.rpartition(probe)[2], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return next((token for token in after if token in special), int(self.tokenizer.eos_token_id))
