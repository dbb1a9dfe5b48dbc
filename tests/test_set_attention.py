import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_hub.set_attention import length_batches, pad_left, set_layout


@st.composite
def batches(draw, most=4):
    """(item_mask, token_mask or None, Q, T, R, packed) of left-padded histories."""
    length, tokens = draw(st.integers(0, most)), draw(st.integers(1, 3))
    real = draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    item_mask = torch.tensor([[column >= length - own for column in range(length)] for own in real], dtype=torch.bool).view(
        len(real), length
    )
    token_mask = torch.tensor(
        draw(st.lists(st.booleans(), min_size=len(real) * length * tokens, max_size=len(real) * length * tokens)), dtype=torch.bool
    ).view(len(real), length, tokens)
    prompt, response = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return item_mask, draw(st.sampled_from([None, token_mask])), tokens, prompt, response, draw(st.booleans())


def places(length, tokens, prompt, response, packed):
    """What stands where: ("prompt", n), ("item", column, slot), ("response", ask, n) or ("query", ask, k); ask = items before it."""
    asks = range(length + 1) if packed else [length]
    row = [("prompt", n) for n in range(prompt)]
    row += [("item", column, slot) for column in range(length) for slot in range(tokens)]
    for ask in asks:
        row += [("response", ask, n) for n in range(response)] + [("query", ask, k) for k in range(tokens)]
    return row


def sees(a, b, real):
    """The paper's rule, one pair at a time."""
    if a == b:
        return True
    kind, other = a[0], b[0]
    if other == "prompt":
        return kind != "prompt" or b[1] < a[1]
    if other == "item":
        return real(b[1], b[2]) and kind != "prompt" and b[1] < a[1]
    if other == "response":
        return kind in ("response", "query") and a[1] == b[1] and (kind == "query" or b[2] < a[2])
    return False


@given(batches())
def test_who_sees_whom_and_where_they_stand(drawn):
    item_mask, token_mask, tokens, prompt, response, packed = drawn
    batch, length = item_mask.shape
    layout = set_layout(item_mask, tokens, prompt, response, packed, token_mask)
    row = places(length, tokens, prompt, response, packed)
    assert layout.positions.shape == (batch, len(row))
    assert layout.visible.shape == (batch, len(row), len(row))
    for user in range(batch):

        def real(column, slot, user=user):
            return bool(item_mask[user, column]) and (token_mask is None or bool(token_mask[user, column, slot]))

        expected = [[sees(a, b, real) for b in row] for a in row]
        assert layout.visible[user].tolist() == expected
        before = [int(item_mask[user, :column].sum()) for column in range(length + 1)]
        compact = {
            "prompt": lambda n: n,
            "item": lambda column, slot, before=before: prompt + before[column],
            "response": lambda ask, n, before=before: prompt + before[ask] + n,
            "query": lambda ask, k, before=before: prompt + before[ask] + response,
        }
        assert layout.positions[user].tolist() == [compact[kind](*where) for kind, *where in row]
        asks = range(length + 1) if packed else [length]
        assert layout.asked[user].tolist() == [ask == length or bool(item_mask[user, ask]) for ask in asks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_additive_mask(dtype):
    layout = set_layout(torch.tensor([[False, True, True]]), 2, 1, 1, True)
    mask = layout.additive(dtype)
    assert mask.shape == (1, 1, *layout.visible.shape[1:])
    assert mask.dtype == dtype
    assert torch.equal(mask[:, 0] == 0, layout.visible)
    assert torch.equal(mask[:, 0] == torch.finfo(dtype).min, ~layout.visible)
    assert torch.isfinite(mask).all()


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=5), st.sampled_from([None, 1, 3, 50]))
def test_pad_left(sequences, most):
    padded = pad_left([np.array(s, np.int64) for s in sequences], most)
    cut = [s[-most:] if most else s for s in sequences]
    assert padded.shape == (len(sequences), max(1, *map(len, cut), 1))
    assert padded.dtype == torch.long
    for row, own in zip(padded.tolist(), cut, strict=True):
        assert row == [-1] * (len(row) - len(own)) + own


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 7))
def test_length_batches(lengths, size):
    batches = length_batches(lengths, size)
    order = [int(row) for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
