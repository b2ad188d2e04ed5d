import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_model
from zerogr_ray.training.batches import Pack, common_prefix, pack
from zerogr_ray.training.examples import Example
from zerogr_ray.training.losses import pack_losses

pytestmark = pytest.mark.model

VOCAB = 11
tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)


@st.composite
def batches(draw: st.DrawFn) -> list[Example]:
    """Examples that begin alike, with repeats and with prompts that are prefixes of each other."""
    prefix = draw(st.lists(st.integers(0, VOCAB - 1), max_size=6))
    own = draw(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8))
    return [Example(prefix + prompt, answer, f"q{i}") for i, (prompt, answer) in enumerate(own)]


def unpacked(one: Pack) -> list[tuple[list[int], list[int], list[int]]]:
    """Tokens seen, places asked and labels of each example, read off the grid alone, without using owner_T."""
    found = []
    row_T, place_T, sees_EPP = one.rows()
    prefix = len(one.tokens_T) - len(row_T)
    for number in range(len(one.examples)):
        mine = (row_T == number).nonzero()[0]
        token_at = {int(place_T[t]): prefix + int(t) for t in mine}
        assert len(token_at) == len(mine)
        for place, token in token_at.items():  # each own token sees exactly what comes before it in its example
            assert [token_at[int(p)] for p in sees_EPP[number, place].nonzero()[0]] == [
                t for t in token_at.values() if t <= token
            ]
        seen = [*range(prefix), *token_at.values()]
        asked = [i for i, place in enumerate(one.places_L) if int(place) in token_at.values()]
        assert [int(p) for p in one.positions_T[seen]] == list(range(len(seen)))
        where = [seen.index(int(one.places_L[i])) for i in asked]
        found.append(([int(t) for t in one.tokens_T[seen]], where, [int(one.labels_L[i]) for i in asked]))
    return found


@given(batches(), st.integers(8, 64))
def test_every_example_is_packed_once_and_sees_only_itself(examples, pack_tokens):
    packs = pack(examples, pack_tokens)
    back = [(e.query, *seen) for one in packs for e, seen in zip(one.examples, unpacked(one), strict=True)]
    expected = [
        (e.query, e.prompt + e.answer[:-1], list(range(len(e.prompt) - 1, len(e.prompt) + len(e.answer) - 1)), e.answer)
        for e in examples
    ]
    assert sorted(back) == sorted(expected)
    assert all(list(one.places_L) == sorted(set(one.places_L)) for one in packs)


@given(batches(), st.integers(8, 64))
def test_packs_keep_their_size_unless_one_example_alone_exceeds_it(examples, pack_tokens):
    for one in pack(examples, pack_tokens):
        assert len(one.tokens_T) <= pack_tokens or len(one.examples) == 1


@given(batches())
def test_the_prefix_is_shared_and_leaves_every_prompt_a_token(examples):
    length = common_prefix(examples)
    prompts = [e.prompt for e in examples]
    assert len({tuple(p[:length]) for p in prompts}) == 1
    assert all(len(p) > length for p in prompts)
    longer = {tuple(p[: length + 1]) for p in prompts}
    assert len(longer) > 1 or min(map(len, prompts)) == length + 1


def test_nothing_to_pack_gives_no_packs():
    assert pack([], 64) == []


@settings(max_examples=20, deadline=None)
@given(batches(), st.integers(8, 48))
def test_packed_loss_and_gradients_are_those_of_plain_padded_training(examples, pack_tokens):
    model = tiny_model(VOCAB)
    wanted, plain = padded_training(model, examples)
    model.zero_grad()
    total, labels = 0.0, 0
    for one in pack(examples, pack_tokens):
        loss = pack_losses(model, one).answers
        loss.backward()
        total, labels = total + float(loss.detach()), labels + len(one.labels_L)
    assert labels == sum(len(e.answer) for e in examples)
    assert abs(total - wanted) < 1e-5 * max(1.0, wanted)
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-5, atol=1e-5 * max(1.0, largest))


def padded_training(model: torch.nn.Module, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """One padded batch through the model's own forward and labels, as a Hugging Face Trainer would do it."""
    width = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, e in enumerate(examples):
        whole = torch.tensor(e.prompt + e.answer)
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        labels[row, len(e.prompt) : len(whole)] = torch.tensor(e.answer)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss * (labels != -100).sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
