"""What is shown of a document that is longer than the room: telling lines of records, the beginning of prose, code."""

from __future__ import annotations

import pytest

from zerogr_ray.config import DocIdConfig
from zerogr_ray.corpus.lines import sort_of
from zerogr_ray.corpus.terms import FEW, Frequencies
from zerogr_ray.docids.generate import WriteDocIds, show

DESCRIPTION = "description: This network finds lanes and cars in pictures of roads and was trained on a hundred towns."


def record(name, domain="Vision", description=DESCRIPTION):
    return "\n".join(
        [
            f"domain: {domain}",
            "framework: PyTorch",
            f"api_name: {name}",
            "api_arguments: " + ", ".join(f'{{"a{i}": "True"}}' for i in range(40)),
            "example_code: [" + ", ".join(f"\"x = load('{name}', pretrained=True)\"" for _ in range(20)) + "]",
            description,
        ]
    )


KNOWN = Frequencies.counted(record(f"net{i}", f"Domain{i}", f"description: {i}") for i in range(2 * FEW))


class Words:
    """A format whose tokens are words, each with the space before it."""

    def tokens(self, texts):
        return [text.split() for text in texts]

    def shorten(self, text, tokens):
        if len(text.split()) <= tokens:
            return text
        end = 0
        for word in text.split()[:tokens]:
            end = text.index(word, end) + len(word)
        return text[:end]


def shown(text, room, title="", known=KNOWN):
    return show(title, text, Words(), room, known)


def test_the_sort_of_a_line():
    assert sort_of("framework: PyTorch\n", KNOWN) == "silent"
    assert sort_of("}\n", KNOWN) == "silent"
    assert sort_of("domain: Lanes\n", KNOWN) == "data"
    assert sort_of('example: ["torch", "json", "one", "two", "six", "ten", "red", "fox"]', KNOWN) == "data"
    assert sort_of("    total = sum(x.weight * scale for x in items if x.active)", KNOWN) == "data"
    assert sort_of("The red fox (a mammal) hunts mice, voles and hares; it isn't shy.", KNOWN) == "sentence"
    assert sort_of("東京の天気は晴れです。", KNOWN) == "sentence"
    assert sort_of("framework: PyTorch", Frequencies.counted([record("one")] * (FEW - 1))) == "data"  # too few to say


def test_of_a_record_the_description_is_shown_and_then_its_first_fields_in_their_order():
    text = record("hybridnet", "Roads")
    first, second, third, last = shown(text, 30).split("\n")
    assert (first, second, last) == ("domain: Roads", "api_name: hybridnet", DESCRIPTION)
    assert third.startswith('example_code: ["x = load(')  # the arguments are those of every record
    assert len(shown(text, 30).split()) == 30
    assert "description" not in shown(text, 30, known=None)
    assert shown(text, 30, title="Road net").startswith("Title: Road net\ndomain: Roads\napi_name: hybridnet\n")


@pytest.mark.parametrize("room", [10, 40, 75])
def test_prose_keeps_its_beginning_to_the_letter(room):
    prose = (
        "The boundary layer grows along the plate, and where it separates the pressure rises.\n"
        "At Mach 2.0 it was 0.35, 0.37, 0.41.\n\n"
        "Results of the second series (see table 3) agree with those of the first, within the error of the gauge.\n"
    ) * 5
    assert shown(prose, room) == shown(prose, room, known=None)
    assert shown(prose.replace("\n", " "), room) == shown(prose.replace("\n", " "), room, known=None)
    assert shown(prose, room, title="On plates") == shown(prose, room, title="On plates", known=None)


CODE = "import os\nimport sys\n\n\ndef merge(a, b):\n" + "".join(f"    x{i} = a[{i}] + b[{i}]\n" for i in range(60))


def test_code_keeps_its_beginning_and_loses_only_lines_that_say_nothing():
    assert shown(CODE, 40) == shown(CODE, 40, known=None)
    alike = Frequencies.counted([CODE.replace("x", f"y{i}_")[:60] for i in range(FEW)])
    assert shown(CODE, 40, known=alike).startswith("    x0 = a[0]")  # all others begin with the same lines


def test_the_docstring_of_code_is_shown_with_its_first_lines():
    doc = '    """Merge two sorted lists into one that is sorted, without changing the order of equal items."""\n'
    found = shown(CODE + doc, 30)
    assert found.startswith("import os\nimport sys\ndef merge(a, b):\n")
    assert found.endswith(doc.strip("\n"))


def test_a_document_that_fits_is_shown_whole():
    text = record("net")
    assert shown(text, len(text.split())) == text


def test_what_is_shown_never_takes_more_than_the_room():
    for text in (record("net"), CODE, DESCRIPTION * 9, "\n" * 500 + record("net"), "a\n" * 300):
        for room in (1, 8, 33, 100):
            for title in ("", "A title of a few words"):
                assert len(shown(text, room, title).split()) <= room


def test_the_settings_switch_it_off_and_change_the_key():
    on, off = (WriteDocIds(DocIdConfig(pick_lines=pick)).key("corpus", "model") for pick in (True, False))
    assert on != off
