"""The fields of one row: parsed, found by name, cleaned. A row that cannot be taken raises RowError."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
NEAR = 0.6


class RowError(ValueError):
    """Why a row cannot be taken, as one sentence without file and line. It never leaves this package."""


def parse_object(raw: bytes) -> dict[str, object]:
    """One JSON object from one line. Raises RowError."""
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"the line is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise RowError(f"the line is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        # Valid JSON that Python declines: a number of thousands of digits, thousands of nested brackets.
        raise RowError(f"the line is not JSON that can be read: {str(error)[:100]}") from None
    if not isinstance(row, dict):
        raise RowError(f"the line is a JSON {kind(row)}, not an object with fields")
    return row


def pick(row: Mapping[str, object], names: Sequence[str], present: Iterable[str] | None = None) -> tuple[str, object]:
    """(name, value) of the first of `names` that the row fills, or of the first it has if all are null.

    `present` are the names of all fields of the file where `row` carries only some. Raises RowError naming the field
    wanted and the nearest field there is.
    """
    there = [name for name in names if name in row]
    if there:
        name = next((name for name in there if row[name] is not None), there[0])
        return name, row[name]
    wanted = f"field {names[0]!r}" + (f" (or {', '.join(names[1:])})" if names[1:] else "")
    found = [name[:40] for name in (row if present is None else present)]
    near = max(found, key=lambda name: _likeness(name, names), default="")
    if near and _likeness(near, names) >= NEAR:
        raise RowError(f"{wanted} is missing; the nearest field is {near!r}: rename it")
    fields = ", ".join(repr(name) for name in found[:8]) or "none"
    raise RowError(f"{wanted} is missing; the row's fields are: {fields}")


def identifier(name: str, value: object) -> str:
    """A docno or qid: a string or whole number, on one line, without space around it. Raises RowError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    taken = re.sub(r"[\n\t]", " ", clean(text(name, value))).strip()
    if not taken:
        raise RowError(f"field {name!r} is empty; every row needs its own id")
    return taken


def text(name: str, value: object) -> str:
    """A text field; null is "". Raises RowError for what is not text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise RowError(f"field {name!r} is not UTF-8") from None
    if not isinstance(value, str):
        raise RowError(f"field {name!r} holds a {kind(value)}, not text")
    return value


def clean(raw: str) -> str:
    """Control characters except newline and tab become a space, lone surrogates U+FFFD; the length stays the same."""
    return SURROGATE.sub("\ufffd", CONTROL.sub(" ", raw))


def grade(value: object) -> int:
    """A relevance grade: 2, "2" and 2.0 are the same. Raises RowError."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not number.is_integer():
        raise RowError(f"the relevance is {str(value)[:40]!r}, not a whole number")
    return int(number)


def kind(value: object) -> str:
    """What JSON calls the type of a value."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _likeness(name: str, wanted: Sequence[str]) -> float:
    return max(SequenceMatcher(None, name.lower(), other).ratio() for other in wanted)
