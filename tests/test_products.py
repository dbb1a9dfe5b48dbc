"""Products by oneDNN are torch's own, to rounding."""

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from genrec_hub import SETRecConfig, SETRecModel, products
from genrec_hub.beam_search import constrained_beam_search
from genrec_hub.products import fast_products
from genrec_hub.trie import Trie


@pytest.fixture(autouse=True)
def neglected(monkeypatch):
    """Whatever the processor, as if MKL neglected it; the app, tested in the same process, does without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_neglected", lambda: True)
    with torch.backends.mkldnn.flags(enabled=True):
        yield


@pytest.fixture
def handed_over(monkeypatch):
    """Shapes of the rows that went to oneDNN."""
    seen, plain = [], products._worth

    def worth(rows, *given):
        found = plain(rows, *given)
        if found:
            seen.append(tuple(rows.shape))
        return found

    monkeypatch.setattr(products, "_worth", worth)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(40, 128), (3, 20, 128), (2, 3, 7, 128)])
def test_linear_layers_multiply_as_ever(handed_over, shape, bias):
    torch.manual_seed(0)
    layer, rows = nn.Linear(128, 130, bias=bias), torch.randn(shape)
    with torch.no_grad():
        plain = layer(rows)
        with fast_products(1000, 128):
            torch.testing.assert_close(layer(rows), plain, atol=1e-5, rtol=0)
            torch.testing.assert_close(layer(rows.mT.contiguous().mT), plain, atol=1e-5, rtol=0)
    assert handed_over == [shape, shape]


def test_gradients_half_precision_and_little_work_stay_with_torch(handed_over):
    layer, rows = nn.Linear(128, 128), torch.randn(40, 128)
    with fast_products(1000, 128):
        layer(rows).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), fast_products(1000, 128):
        layer(rows[:31])
        nn.Linear(128, 127)(rows)
        layer.double()(rows.double())
        layer.bfloat16()(rows.bfloat16())
    assert handed_over == []


def test_it_can_be_turned_off(handed_over):
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), fast_products(1000, 128):
        nn.Linear(128, 128)(torch.randn(40, 128))
    assert handed_over == []


@pytest.mark.parametrize(("rows", "width"), [(100, 128), (100_000, 127)])
def test_small_models_are_left_alone(handed_over, rows, width):
    with torch.no_grad(), fast_products(rows, width):
        nn.Linear(128, 128)(torch.randn(40, 128))
    assert handed_over == []


def test_generation_is_the_same(handed_over, monkeypatch):
    """A T5 wide enough: encoder and head of a beam search, and the encoder of SETRec's one pass."""
    torch.manual_seed(0)
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 520, "dropout_rate": 0.0}
    config = T5Config(**sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    trie = Trie.build([[2 + row // 10, 20 + row] for row in range(60)], 1)
    inputs = {"input_ids": torch.randint(2, 520, (8, 80))}
    setrec = SETRecModel(SETRecConfig(text_config=config, semantic_tokens=2, cf_size=8, prompt_ids=[5])).eval()
    history = (torch.randn(8, 40, 384), torch.ones(8, 40, dtype=torch.bool), torch.randn(8, 40, 8))

    def answers():
        with torch.no_grad():
            return constrained_beam_search(model, inputs, trie, 20), setrec(*history).tokens

    found, tokens = answers()
    asked = {shape for shape in handed_over if shape[-1] == 128}
    assert asked == {(8, 80, 128), (160, 128), (8, 40, 128), (8, 121, 128)}
    monkeypatch.setattr(products, "_neglected", lambda: False)
    plain, plain_tokens = answers()
    assert torch.equal(found.rows, plain.rows)
    torch.testing.assert_close(found.scores, plain.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, plain_tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("users", [1, 2, 8])
@pytest.mark.parametrize("columns", [True, False])
def test_a_product_with_a_table_is_as_ever(users, columns):
    """Whole or in part, by rows or by columns; equal rows of the table score alike, wherever they stand."""
    torch.manual_seed(0)
    table = torch.randn(700, 193)[torch.randint(700, (3000,))]
    table, rows = table.T.contiguous().T if columns else table, torch.randn(users, 193)
    with torch.no_grad():
        for part in (table, table[:2000], table[1000:]):
            found = products.table_product(rows, part)
            torch.testing.assert_close(found, rows @ part.T, atol=1e-4, rtol=0)
            same = (part[:, None, 0] == part[None, :, 0]).float().argmax(1)
            assert torch.equal(found, found[:, same])
