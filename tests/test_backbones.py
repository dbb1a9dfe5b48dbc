import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    BartConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5GemmaConfig,
    T5GemmaModuleConfig,
    UMT5Config,
)

from genrec_hub import backbones as rooms
from genrec_hub.configuration_setrec import SETRecConfig
from genrec_hub.domain import Cases, Sequences
from genrec_hub.grounding import top_k
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.set_attention import prefix_layout, set_layout
from genrec_hub.training import SETRecTrainer, training_arguments

SIZE = {"vocab_size": 12, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512}
T5 = {"vocab_size": 12, "d_model": 32, "d_ff": 48, "d_kv": 12, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}


def t5gemma():
    halves = (T5GemmaModuleConfig(**SIZE, query_pre_attn_scalar=16) for _ in range(2))
    return T5GemmaConfig(**dict(zip(("encoder", "decoder"), halves, strict=True)), vocab_size=12)


NESTED = {
    "qwen2": lambda: Qwen2Config(**{name: value for name, value in SIZE.items() if name != "head_dim"}),
    "qwen2-sliding": lambda: Qwen2Config(
        **{name: value for name, value in SIZE.items() if name != "head_dim"}, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SIZE),
    "llama": lambda: LlamaConfig(**SIZE),
    "mistral": lambda: MistralConfig(**SIZE),
    "gemma": lambda: GemmaConfig(**SIZE),
    "gemma2": lambda: Gemma2Config(**SIZE, query_pre_attn_scalar=16),
    "gemma3": lambda: Gemma3TextConfig(**SIZE, query_pre_attn_scalar=16, sliding_window_pattern=2),
    "t5": lambda: T5Config(**T5),
    "mt5": lambda: MT5Config(**T5),
    "t5gemma": t5gemma,
}
BACKBONES = list(NESTED)
ENCODERS = [name for name in BACKBONES if "t5" in name]
DECODERS = [name for name in BACKBONES if "t5" not in name]
ATTENTIONS = ["eager", "sdpa"]
EAGER = ("gemma2", "t5gemma")
"""They cap attention scores, which sdpa cannot: transformers runs them eagerly, and refuses a demand for sdpa."""
BOTH = [(backbone, attention) for backbone in BACKBONES for attention in ATTENTIONS if attention == "eager" or backbone not in EAGER]
WORDS = {"prompt_ids": (3, 1), "response_ids": (5,)}


def tiny(backbone="t5", attention=None, seed=0, **config):
    """A SETRec in evaluation mode on a backbone of true architecture whose parameters are all away from their start."""
    own = {"semantic_tokens": 3, "semantic_size": 16, "semantic_widths": (24, 20), "cf_size": 6, **WORDS}
    torch.manual_seed(seed)
    config = SETRecConfig(**{**own, "text_config": NESTED[backbone](), **config})
    attention = attention or ("eager" if backbone in EAGER else "sdpa")
    model = SETRecModel._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=BOTH, ids="-".join)
def model(request):
    made = tiny(*request.param)
    assert made.backbone.config._attn_implementation == request.param[1]
    return made


def features(size=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    semantic = torch.nn.functional.normalize(torch.randn(size, 16, generator=generator), dim=-1)
    has_cf = torch.arange(size) % 3 > 0
    return {"semantic": semantic.to(dtype), "cf": torch.randn(size, 6, generator=generator).to(dtype) * has_cf[:, None], "has_cf": has_cf}


def inputs(histories, known, left=0, garbage=False):
    length = max(map(len, histories), default=0) + left
    mask = torch.zeros(len(histories), length, dtype=torch.bool)
    rows = torch.zeros(len(histories), length, dtype=torch.long)
    for row, own in enumerate(histories):
        mask[row, length - len(own) :] = True
        rows[row, length - len(own) :] = torch.tensor(own, dtype=torch.long)
    out = {name: values[rows] * (mask[..., None] if values.ndim == 2 else mask) for name, values in known.items()}
    if garbage:
        out["semantic"][~mask] = 77.0
        out["has_cf"][~mask] = True
    return {**out, "item_mask": mask}


def digest(model):
    total = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        total.update(name.encode() + values.contiguous().numpy().tobytes())
    return total.hexdigest()


def far(one, other):
    return float((one - other).detach().abs().max())


# Order-agnostic sets


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_order_of_tokens_inside_an_item_says_nothing(model, packed):
    asked = inputs([[3, 7, 1, 9, 30], [2, 4]], {name: values for name, values in features().items() if name != "has_cf"})
    plain, tokenize = model(**asked, packed=packed).tokens, model.tokenize

    def shuffled(*arrays):
        tokens = tokenize(*arrays).clone()
        tokens[:, 1], tokens[:, 4] = tokens[:, 1, [2, 0, 3, 1]], tokens[:, 4, [3, 2, 1, 0]]
        return tokens

    model.tokenize = shuffled
    try:
        changed = model(**asked, packed=packed).tokens
    finally:
        del model.tokenize
    assert far(plain, changed) <= 1e-5
    one, other = model(**inputs([[3, 7, 1]], features())).tokens, model(**inputs([[7, 3, 1]], features())).tokens
    assert far(one, other) > 1e-4  # the order of items says something


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_a_query_is_nothing_to_the_others(model, packed):
    asked = inputs([[3, 7, 1], [2], []], features())
    before, kept = model(**asked, packed=packed).tokens, model.queries.data.clone()
    for slot in range(4):
        try:
            model.queries.data[slot] += torch.randn(32)
            after = model(**asked, packed=packed).tokens
        finally:
            model.queries.data = kept.clone()
        for other in range(4):
            assert torch.equal(before[:, :, other], after[:, :, other]) == (other != slot)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in EAGER])
@torch.no_grad()
def test_eager_is_sdpa(backbone):
    asked = inputs([[3, 7, 1, 8], [2], []], features())
    eager, sdpa = (tiny(backbone, attention)(**asked, packed=True).tokens for attention in ATTENTIONS)
    assert far(eager, sdpa) <= 1e-5


# Batch = single, packed = one prefix at a time


@torch.no_grad()
def test_a_batch_is_its_single_requests(model):
    known = features()
    index = model.index(**known)
    histories = [[3, 7, 1, 8, 20], [], [2], [6, 6, 30], [12, 0]]
    for left, garbage in ((0, False), (3, True)):
        together = model(**inputs(histories, known, left, garbage)).tokens
        for row, history in enumerate(histories):
            alone = model(**inputs([history], known)).tokens
            assert alone.shape == (1, 1, 4, 32)
            assert far(together[row], alone[0]) <= 1e-5
            assert far(model.ground(together[row]) @ index.T, model.ground(alone[0]) @ index.T) <= 1e-5


@torch.no_grad()
def test_a_history_with_holes(model):
    asked = inputs([[3, 7, 1, 8]], features(), 1)
    whole = inputs([[3, 1, 8]], features())
    asked["item_mask"][0, 2] = False
    asked["semantic"][0, 2] = 77.0
    assert far(model(**asked).tokens, model(**whole).tokens) <= 1e-5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_reading_without_keys_is_the_blocks_own_attention(monkeypatch, attention):
    """Holes in the CF vectors, an empty history and several lengths: every mask that a block sees."""
    model, known = tiny("t5", attention).double(), features(dtype=torch.float64)
    asked = inputs([[3, 7, 1, 9, 30], [], [2, 4]], known)
    answers, gradients = [], []
    for few in (True, False):
        monkeypatch.setattr(rooms, "_reads_few", lambda attention, hidden, few=few: few)
        model.zero_grad()
        answers.append(model(**asked, packed=True).tokens)
        answers[-1].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        with torch.no_grad():  # queries, which see only themselves, then need no attention
            answers.append(model(**asked, packed=True).tokens)
    assert all(torch.allclose(answer, answers[-1], rtol=0, atol=1e-10) for answer in answers)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("backbone", ["qwen2", "qwen2-sliding", "qwen3", "llama", "mistral"])
@torch.no_grad()
def test_the_last_layer_of_the_end_alone_is_the_backbones_own_forward(monkeypatch, backbone, attention, packed):
    """Holes in the CF vectors, an empty history, several lengths, adapters; and nothing at all before the queries."""
    for more in ({}, {"prompt_ids": (), "response_ids": ()}, {"lora": {}}):
        model = tiny(backbone, attention, **more).double()
        assert model.backbone.config.model_type in rooms.PLAIN
        for histories in ([[3, 7, 1, 9, 30], [], [2, 4]], [[]]):
            asked = inputs(histories, features(dtype=torch.float64))
            found = model(**asked, packed=packed).tokens
            with monkeypatch.context() as patch:
                patch.setattr(rooms, "PLAIN", ())
                whole = model(**asked, packed=packed).tokens
            assert found.shape == whole.shape
            assert far(found, whole) <= 1e-12


def test_nothing_is_left_out_where_gradients_are_wanted(monkeypatch):
    called = []
    monkeypatch.setattr(rooms, "_end_of_sequence", lambda *given: called.append(given))
    tiny("qwen3")(**inputs([[3, 7]], features())).tokens.sum().backward()
    assert not called


def one_at_a_time(model, histories, known):
    """(row, column, tokens) of every prefix, each asked alone."""
    longest = max(map(len, histories))
    for row, history in enumerate(histories):
        for count in range(len(history) + 1):
            yield row, longest - len(history) + count, model(**inputs([history[:count]], known)).tokens[0, 0]


@pytest.mark.parametrize("mask", ["paper", "released"])
@torch.no_grad()
def test_packed_is_one_prefix_at_a_time(model, mask):
    known, histories = features(), [[3, 7, 1, 9, 4], [2, 5], []]
    model.config.mask = mask
    try:
        packed = model(**inputs(histories, known, 1), packed=True)
        assert packed.tokens.shape == (3, 7, 4, 32)
        for row, column, alone in one_at_a_time(model, histories, known):
            assert packed.asked[row, column + 1]
            assert far(alone, packed.tokens[row, column + 1]) <= 1e-5
        assert int(packed.asked.sum()) == 6 + 3 + 1
    finally:
        model.config.mask = "paper"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_learns_what_single_prefixes_teach(backbone):
    """The gradient of every parameter; in double precision but for the norms, which compute in single."""
    model, known, histories = tiny(backbone).double(), features(dtype=torch.float64), [[3, 7, 1, 9], [2, 5], []]
    packed = model(**inputs(histories, known), packed=True)
    weights = torch.randn(packed.tokens.shape, dtype=torch.float64)
    total = sum((alone * weights[row, column]).sum() for row, column, alone in one_at_a_time(model, histories, known))
    one = torch.autograd.grad((packed.tokens * weights)[packed.asked].sum(), list(model.parameters()), allow_unused=True)
    other = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), one, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or far(a, b) <= 1e-5 * max(1.0, float(b.abs().max())), name


@pytest.mark.parametrize(("backbone", "attention"), [pair for pair in BOTH if pair[0] in ("gemma", "t5", "t5gemma")])
@torch.no_grad()
def test_prompts_and_responses_of_any_length(backbone, attention):
    known, histories = features(), [[3, 7, 1], [], [2]]
    for prompt in range(4):
        for response in range(4):
            model = tiny(backbone, attention, prompt_ids=tuple(range(1, 1 + prompt)), response_ids=tuple(range(4, 4 + response)))
            together = model(**inputs(histories, known, 2), packed=True).tokens
            assert torch.isfinite(together).all()
            for row, column, alone in one_at_a_time(model, histories, known):
                assert far(together[row, column + 2], alone) <= 1e-5
            for name in ("prompt_ids", "response_ids"):
                ids = getattr(model.config, name)
                setattr(model.config, name, tuple((word + 5) % 12 for word in ids))
                assert (far(model(**inputs(histories, known)).tokens, together[:, -1:]) > 1e-5) == (len(ids) > 0)
                setattr(model.config, name, ids)


# Encoders: the same arithmetic as transformers, and who sees whom


@pytest.mark.parametrize(("backbone", "attention"), [pair for pair in BOTH if pair[0] in ENCODERS])
@torch.no_grad()
def test_with_one_token_an_item_it_is_an_ordinary_encoder_decoder(backbone, attention):
    """One token an item leaves nothing to mask, and positions count upwards: what transformers computes by itself."""
    model = tiny(backbone, attention, cf_size=0, semantic_tokens=1)
    asked = {name: values for name, values in inputs([[3, 7, 1, 9]], features()).items() if "cf" not in name}
    words = model.get_input_embeddings()
    sequence = torch.cat([words(torch.tensor([3, 1])), model.tokenize(asked["semantic"])[0, :, 0], words(torch.tensor([5]))])[None]
    start = {"decoder_position_ids": torch.zeros(1, 1, dtype=torch.long)} if backbone == "t5gemma" else {}
    everything = torch.ones(1, len(sequence[0]), dtype=torch.long)
    plain = model.backbone(
        inputs_embeds=sequence, attention_mask=everything, decoder_inputs_embeds=model.queries[None], use_cache=False, **start
    )
    assert far(model(**asked).tokens[:, 0], plain.last_hidden_state) <= 1e-6


@st.composite
def prefixes(draw):
    length = draw(st.integers(0, 4))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=3))
    sizes = [draw(st.integers(*most)) for most in ((1, 3), (0, 2), (0, 2))]
    return torch.tensor(mask, dtype=torch.bool).view(len(mask), length), *sizes


@given(prefixes(), st.booleans(), st.booleans())
def test_rows_of_equal_length(drawn, packed, released):
    mask, tokens, prompt, response = drawn
    layout = prefix_layout(mask, tokens, prompt, response, packed, None, released)
    assert torch.equal(layout.asked, set_layout(mask, tokens, prompt, response, packed).asked)
    found = {}
    for users, asks, columns in layout.batches(200, 2):
        assert len(users) == 1 or 2 * len(users) * (prompt + columns.shape[1] * tokens + response) ** 2 <= 200
        found |= {(user, ask): own for user, ask, own in zip(users.tolist(), asks.tolist(), columns.tolist(), strict=True)}
    length = mask.shape[1]
    ends = range(length + 1) if packed else [length]
    expected = {
        (user, ask): [column for column in range(end) if mask[user, column]]
        for user in range(len(mask))
        for ask, end in enumerate(ends)
        if end == length or mask[user, end]
    }
    assert found == expected


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("response", [0, 2])
@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize("items", [0, 1, 3])
def test_who_sees_whom_in_an_encoder(items, prompt, response, released):
    positions, visible = prefix_layout(torch.ones(1, items, dtype=torch.bool), 3, prompt, response, False, None, released).encoder(items)
    row = [("prompt", n) for n in range(prompt)] + [("item", n) for n in range(items) for _ in range(3)]
    row += [("response", n) for n in range(response)]
    after = prompt + items * (3 if released else 1)
    expected = [n + {"prompt": 0, "item": prompt, "response": after}[kind] for kind, n in row]
    assert positions.tolist() == expected
    for a, one in enumerate(row):
        for b, other in enumerate(row):
            assert bool(visible[a, b]) == (released or one != other or a == b)


@pytest.mark.parametrize("mask", ["paper", "released"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_tokens_of_an_item_meet_only_in_the_published_code(attention, mask):
    """One item and nothing else to carry a message: the paper's tokens are blind to each other, those of the published T5 code are not."""
    model = tiny("t5", attention, prompt_ids=(), response_ids=(), mask=mask)
    seen = []
    hook = model.backbone.encoder.final_layer_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    one = inputs([[4]], features())
    model(**one)
    model(**{**one, "cf": one["cf"] + 1})
    hook.remove()
    assert not torch.equal(seen[0][:, 0], seen[1][:, 0])
    assert torch.equal(seen[0][:, 1:], seen[1][:, 1:]) == (mask == "paper")


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_later_items_are_seen(attention):
    model, seen = tiny("t5", attention), []
    hook = model.backbone.encoder.final_layer_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    for history in ([3, 7, 1], [3, 7, 8]):
        model(**inputs([history], features()))
    hook.remove()
    assert far(seen[0][:, 2:6], seen[1][:, 2:6]) > 1e-4


# What the published code does


@pytest.mark.parametrize(("backbone", "attention"), [pair for pair in BOTH if pair[0] in ENCODERS])
@torch.no_grad()
def test_published_queries_see_each_other_in_the_decoder(backbone, attention):
    model, asked = tiny(backbone, attention, mask="released"), inputs([[3, 7, 1], []], features())
    before = model(**asked).tokens
    model.queries[1] += torch.randn(32)
    after = model(**asked).tokens
    assert all(not torch.equal(before[:, :, slot], after[:, :, slot]) for slot in range(4))


@torch.no_grad()
def test_published_decoder_is_its_own_formula():
    """Scores of the first decoder layer: q.k + constant + 1 on the diagonal, nothing hidden; output scale left out."""
    model, seen = tiny("t5", "eager", mask="released"), []
    layer = model.backbone.decoder.block[0].layer[0]
    hook = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(**inputs([[3, 7]], features()))
    hook.remove()
    (hidden, (output, _, weights)) = seen[0]
    attention, normed = layer.SelfAttention, layer.layer_norm(hidden)
    query, key, value = (part(normed).unflatten(-1, (2, 12)).transpose(1, 2) for part in (attention.q, attention.k, attention.v))
    expected = (query @ key.transpose(2, 3) + torch.eye(4)).softmax(-1)
    assert far(weights, expected) <= 1e-6
    assert far(output, hidden + attention.o((expected @ value).transpose(1, 2).flatten(2))) <= 1e-5


@pytest.mark.parametrize("packed", [False, True])
@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=15)
def test_published_positions_of_a_sequence(packed, lengths, tokens, prompt, response):
    longest = max(lengths)
    mask = torch.arange(longest)[None, :] >= longest - torch.tensor(lengths)[:, None]
    paper, released = (set_layout(mask, tokens, prompt, response, packed, None, flag) for flag in (False, True))
    assert torch.equal(paper.visible, released.visible)
    body, block = prompt + longest * tokens, response + tokens
    assert torch.equal(paper.positions[:, :body], released.positions[:, :body])
    for row in range(len(lengths)):
        for ask, column in enumerate(range(longest + 1) if packed else [longest]):
            start = prompt + int(mask[row, :column].sum()) * tokens
            assert released.positions[row, body + ask * block :][:block].tolist() == list(range(start, start + block))


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_the_two_masks_differ_and_are_saved(backbone, tmp_path):
    model, asked = tiny(backbone, mask="released"), inputs([[3, 7, 1, 9]], features())
    released = model(**asked).tokens
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.mask == "released"
    assert torch.equal(loaded(**asked).tokens, released)
    loaded.config.mask = "paper"
    assert far(loaded(**asked).tokens, released) > 1e-5


# The embedding scale


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_items_and_words_enter_at_one_scale(backbone):
    """An item token that equals a word's vector is read as that word: the factor of Gemma's embedding module is on both or on neither."""
    model, seen = tiny(backbone, prompt_ids=(3,), cf_size=0, semantic_tokens=1), []
    words, target = model.get_input_embeddings(), model.backbone.layers if backbone in DECODERS else None
    first = target[0] if target else (model.backbone.encoder.block if "gemma" not in backbone else model.backbone.encoder.layers)[0]
    hook = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.tokenize = lambda semantic, cf=None: words.weight[3].expand(*semantic.shape[:-1], 1, 32)
    model(**{name: values for name, values in inputs([[4, 5]], features()).items() if "cf" not in name})
    hook.remove()
    [hidden] = seen
    assert torch.allclose(hidden[0, 0], hidden[0, 1], rtol=1e-6)
    factor = float(hidden[0, 1].norm() / words.weight[3].norm())
    assert factor == pytest.approx(32**0.5 if "gemma" in backbone else 1.0, rel=1e-5)
    assert float(rooms.word_scale(words)) == pytest.approx(32**0.5 if backbone in ("gemma", "gemma2", "gemma3") else 1.0)


# Folders, gradients, grounding


@pytest.mark.parametrize("backbone", EAGER)
def test_what_sdpa_cannot_do_runs_eagerly(backbone, tmp_path):
    tiny(backbone).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).backbone.config._attn_implementation == "eager"


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    asked = inputs([[3, 7, 1], [2], []], features())
    for folder in ("one", "many"):
        loaded = AutoModel.from_pretrained(tmp_path / folder, attn_implementation=model.config._attn_implementation)
        assert digest(loaded) == digest(model)
        assert type(loaded.config.text_config) is type(model.config.text_config)
        assert torch.equal(loaded(**asked, packed=True).tokens, model(**asked, packed=True).tokens)
    config = AutoConfig.from_pretrained(tmp_path / "one")
    assert SETRecConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_(en|dis)able. is deprecated")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_learns(model, checkpointing):
    """But where a lone softmax term leaves nothing to learn: what compares a query with itself in T5's decoder."""
    known = features()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train().zero_grad()
    out = model(**inputs([[3, 7, 1, 9], [2, 5]], known), packed=True, candidates=known, labels=torch.randint(0, 40, (2, 5)))
    out.loss.backward()
    model.eval().gradient_checkpointing_disable()
    silent = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 1e-9)}
    kind = model.config.text_config.model_type.removeprefix("m")
    compared = {"t5": ("SelfAttention.q.", "SelfAttention.k.", "relative_attention_bias"), "t5gemma": ("self_attn.q_", "self_attn.k_")}
    unused = ("decoder.embed_tokens",)  # the decoder reads queries, no words
    allowed = [n for n, _ in model.named_parameters() if "decoder" in n and any(p in n for p in (*compared.get(kind, ()), *unused))]
    assert silent <= {name for name in allowed if name.startswith("backbone.")}
    assert bool(silent) == model.config.has_encoder


@torch.no_grad()
def test_grounding_in_latent_space_is_grounding_by_token(model):
    known = features()
    generated = model(**inputs([[3, 7, 1], [2], []], known)).tokens[:, 0]
    scores = {}
    for form in ("latent", "token"):
        model.config.grounding = form
        index = model.index(**known)
        scores[form] = model.ground(generated) @ index.T + model.ground_constant(generated)[:, None]
        scores[form + " rows"] = top_k(model.ground(generated), index, 20)[1]
    model.config.grounding = "auto"
    reference = model.contributions(generated, **{name: values.expand(3, *values.shape) for name, values in known.items()}).sum(-1)
    assert far(scores["latent"], scores["token"]) <= 1e-4
    assert far(scores["latent"], reference) <= 1e-4
    assert torch.equal(scores["latent rows"], scores["token rows"])


@torch.no_grad()
def test_items_without_interactions(model):
    """What an absent CF vector holds reaches nothing: neither the history, nor the index, nor the score."""
    known = features()
    asked = inputs([[3, 6, 1, 9], [0], [7, 2]], known)
    garbage = {**asked, "cf": torch.where(asked["has_cf"][..., None], asked["cf"], 50.0)}
    for packed in (False, True):
        assert torch.equal(model(**asked, packed=packed).tokens, model(**garbage, packed=packed).tokens)
    shown = {**asked, "has_cf": torch.ones_like(asked["has_cf"])}
    assert far(model(**asked).tokens, model(**shown).tokens) > 1e-4  # a CF token of zeros would be read
    generated = model(**asked).tokens[:, 0]
    for form in ("latent", "token"):
        model.config.grounding = form
        index = model.index(**known)
        dirty = {**known, "cf": torch.where(known["has_cf"][:, None], known["cf"], 50.0)}
        assert torch.equal(index, model.index(**dirty))
        quiet = generated.clone()
        quiet[:, 0] = 0
        cold = ~known["has_cf"]
        constant = model.ground_constant(generated)[:, None]
        score, semantic = (model.ground(part) @ index.T + constant for part in (generated, quiet))
        assert far(score[:, cold], semantic[:, cold]) <= 1e-5
        assert far(score[:, ~cold], semantic[:, ~cold]) > 1e-3
    model.config.grounding = "auto"


@pytest.mark.parametrize(
    "config",
    [
        UMT5Config(**T5),
        BartConfig(vocab_size=12, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32),
        BloomConfig(vocab_size=12, hidden_size=32, n_layer=1, n_head=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_backbone_with_positions_of_its_own_is_refused(config):
    with pytest.raises(ValueError, match="takes no positions of ours: use a decoder-only model"):
        SETRecModel(SETRecConfig(text_config=config))


# Pretrained backbones and adapters


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of a small random Qwen3 and T5 with a tokenizer trained here."""
    text = ["What would user be likely to purchase next after buying items ?;", "user : item ; buy or sell ?"] * 4
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    learned.train_from_iterator(text, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<pad>", "</s>"], show_progress=False))
    words = PreTrainedTokenizerFast(tokenizer_object=learned, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    folders = {}
    for name, config in (("qwen3", Qwen3Config(**{**SIZE, "vocab_size": 80})), ("t5", T5Config(**{**T5, "vocab_size": 80}))):
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(1)
        AutoModel.from_config(config).save_pretrained(folders[name])
        words.save_pretrained(folders[name])
    return folders


NEW = {"semantic_tokens": 3, "semantic_size": 16, "semantic_widths": (24,), "cf_size": 6}
LORA = {"r": 2, "alpha": 4, "dropout": 0.0}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("backbone", ["qwen3", "t5"])
@torch.no_grad()
def test_on_a_pretrained_backbone(pretrained, tmp_path, backbone, attention):
    model = SETRecModel.from_backbone(str(pretrained[backbone]), attn_implementation=attention, **NEW).eval()
    original = AutoModel.from_pretrained(pretrained[backbone])
    assert digest(model.backbone) == digest(original)
    assert model.backbone.config._attn_implementation == model.config._attn_implementation == attention
    words = PreTrainedTokenizerFast.from_pretrained(pretrained[backbone])
    assert words.decode(model.config.prompt_ids).replace(" ", "") == "Whatwoulduserbelikelytopurchasenextafterbuyingitems"
    assert words.decode(model.config.response_ids).replace(" ", "") == "?;"
    assert float(model.queries.std()) == pytest.approx(0.02, rel=0.3)
    asked = inputs([[3, 7, 1], []], features())
    before = model(**asked).tokens
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(loaded(**asked).tokens, before)
    assert all(p.requires_grad for p in loaded.parameters())
    assert AutoConfig.from_pretrained(tmp_path).text_config.to_dict() == model.config.text_config.to_dict()
    half = SETRecModel.from_backbone(str(pretrained[backbone]), dtype=torch.bfloat16, **NEW)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def with_adapters(folder, **settings):
    """A model whose adapters and new parts are away from their start."""
    torch.manual_seed(2)
    model = SETRecModel.from_backbone(str(folder), lora={**LORA, **settings}, **NEW).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("backbone", ["qwen3", "t5"])
def test_adapters_alone_are_trained(pretrained, tmp_path, backbone):
    fresh = SETRecModel.from_backbone(str(pretrained[backbone]), lora={}, **NEW).eval()
    plain = SETRecModel.from_backbone(str(pretrained[backbone]), **NEW).eval()
    state = plain.state_dict()
    with torch.no_grad():  # only the new parts are drawn anew
        for name, values in fresh.state_dict().items():
            if not name.startswith("backbone."):
                values.copy_(state[name])
        asked = inputs([[3, 7, 1], []], features())
        # Adapters start at no change (where they stand, T5's cross-attention makes its keys and values, elsewhere not).
        assert torch.allclose(fresh(**asked).tokens, plain(**asked).tokens, rtol=0, atol=1e-5)
    modules = ["q", "v", "o"] if backbone == "t5" else ["q_proj", "v_proj", "o_proj"]
    assert fresh.config.lora == {"r": 8, "alpha": 16, "dropout": 0.02, "target_modules": modules}
    fresh.save_pretrained(tmp_path)
    for model in (fresh, AutoModel.from_pretrained(tmp_path)):
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {name for name, _ in model.named_parameters() if not name.startswith("backbone.") or "lora_" in name}
        blocks = (2 + 4) if backbone == "t5" else 2  # encoder self, decoder self and cross attention
        assert sum("lora_A" in name for name in trainable) == blocks * 3
        frozen = {name: values.clone() for name, values in model.state_dict().items() if name not in trainable}
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 0.05)
        losses = []
        for _ in range(6):
            labels = torch.tensor([[-100, 7, 1, 9], [-100, -100, 4, 5]])
            known = features()
            loss = model.train()(**inputs([[3, 7, 1], [2, 4]], known), packed=True, candidates=known, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.95 * losses[0]
        assert all(torch.equal(values, model.state_dict()[name]) for name, values in frozen.items())


@pytest.mark.parametrize("backbone", ["qwen3", "t5"])
@torch.no_grad()
def test_adapters_kept_and_merged(pretrained, tmp_path, backbone):
    model, asked = with_adapters(pretrained[backbone]), inputs([[3, 7, 1], [2], []], features())
    kept = model(**asked, packed=True).tokens
    plain = SETRecModel.from_backbone(str(pretrained[backbone]), **NEW)
    model.save_pretrained(tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "kept" / "adapter_config.json").exists()
    loaded = AutoModel.from_pretrained(tmp_path / "kept")
    assert digest(loaded) == digest(model)
    assert loaded.config.lora == {**LORA, "target_modules": model.config.lora["target_modules"]}
    assert torch.equal(loaded(**asked, packed=True).tokens, kept)
    assert loaded.merge_adapter() is loaded
    assert loaded.config.lora is None
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in loaded.parameters())
    merged = loaded(**asked, packed=True).tokens
    assert far(kept, merged) <= 1e-5
    loaded.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")
    assert digest(again) == digest(loaded)
    assert torch.equal(again(**asked, packed=True).tokens, merged)
    with pytest.raises(ValueError, match="no adapters to merge"):
        again.merge_adapter()


def test_adapters_of_ones_own(pretrained):
    model = with_adapters(pretrained["qwen3"], target_modules=["up_proj"], r=3)
    assert {tuple(p.shape) for name, p in model.named_parameters() if "lora_A" in name} == {(3, 32)}
    with pytest.raises(Exception, match=r"rank.*it knows r, alpha, dropout and target_modules"):
        SETRecConfig(lora={"rank": 4})
    with pytest.raises(Exception, match="mask"):
        SETRecConfig(mask="sparse")


def test_adapters_without_peft(pretrained, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        SETRecModel.from_backbone(str(pretrained["t5"]), lora={}, **NEW)


# The trainer does not know which backbone it trains


@pytest.mark.parametrize("lora", [None, LORA])
def test_t5_in_the_trainer(pretrained, tmp_path, lora):
    known = {name: values for name, values in features(30).items() if name == "semantic"}
    sequences = Sequences.of([[(3 * user + step) % 30 for step in range(5)] for user in range(24)])
    cases = Cases([f"{n}" for n in range(6)], [np.arange(n, n + 3) for n in range(6)], [np.array([n + 3]) for n in range(6)])
    torch.manual_seed(0)
    model = SETRecModel.from_backbone(str(pretrained["t5"]), lora=lora, **{**NEW, "cf_size": 0}, normalize="slot")
    arguments = training_arguments(tmp_path, epochs=4, batch=8, rate=1e-2, steps_per_epoch=3, seed=0)
    trainer = SETRecTrainer(model, arguments, features=known, sequences=sequences, validation=cases, catalog_size=30, negatives=0)
    before = trainer.rank_validation()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.rank_validation()["ndcg@10"] > before["ndcg@10"]
