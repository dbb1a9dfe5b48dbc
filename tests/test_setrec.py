import hashlib
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModel, AutoProcessor, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from genrec_hub import processing_setrec
from genrec_hub.batches import collate, own_candidates
from genrec_hub.catalog import Catalog, Item
from genrec_hub.configuration_setrec import SETRecConfig
from genrec_hub.domain import Domain, Sequences
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.training import SETRecTrainer

BACKBONES = ["qwen3", "qwen2", "llama"]
ATTENTIONS = ["eager", "sdpa"]
OPTIONS = {
    "paper": {},
    "slot": {"normalize": "slot", "fused_loss": 0.5},
    "joint": {"normalize": "joint", "fused_loss": 1.0, "slot_weights": [0.5, 1.0, 2.0, 0.1]},
    "residual": {"residual": True, "normalize": "slot"},
    "mixture": {"residual": True, "decay": [1.5, 0.5, 0.15], "prior": True, "normalize": "joint"},
    "cold": {"residual": True, "decay": [0.1, 0.05], "cf_decay": [1.5, 0.5], "normalize": "slot", "fused_loss": 0.6, "cold_score": 0.45},
}


@pytest.fixture(scope="module", params=[(b, a) for b in BACKBONES for a in ATTENTIONS], ids="-".join)
def model(request, tiny_setrec):
    """Every backbone with every attention, three semantic tokens and a CF token."""
    backbone, attention = request.param
    model = tiny_setrec(backbone, attention, cf_size=6, prompt_ids=(3, 0), response_ids=(5,))
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == attention
    return model


def features(size=40, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.nn.functional.normalize(torch.randn(size, 16, generator=generator), dim=-1)
    has_cf = torch.arange(size) % 3 > 0
    return {"semantic": semantic.to(dtype), "cf": torch.randn(size, 6, generator=generator).to(dtype) * has_cf[:, None], "has_cf": has_cf}


def inputs(histories, known, left=0, garbage=False):
    """Model inputs of histories of rows, with `left` further columns of padding."""
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
    """One number for all weights."""
    total = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        total.update(name.encode() + values.contiguous().numpy().tobytes())
    return total.hexdigest()


# Order-agnostic sets


@given(st.integers(0, 4), st.permutations(range(4)))
@settings(max_examples=12)
@torch.no_grad()
def test_the_order_of_tokens_inside_an_item_says_nothing(model, item, order):
    known = features()
    asked = inputs([[3, 7, 1, 9, 30], [2, 4]], {name: values for name, values in known.items() if name != "has_cf"})
    index, plain, tokenize = model.index(**known), model(**asked), model.tokenize

    def shuffled(*arrays):
        tokens = tokenize(*arrays).clone()
        tokens[:, item] = tokens[:, item, order]
        return tokens

    model.tokenize = shuffled
    try:
        changed = model(**asked)
    finally:
        del model.tokenize
    assert (plain.tokens - changed.tokens).abs().max() <= 1e-5
    scores = [model.ground(output.tokens[:, 0]) @ index.T for output in (plain, changed)]
    assert (scores[0] - scores[1]).abs().max() <= 1e-5


@torch.no_grad()
def test_the_order_of_items_says_something(model):
    known = features()
    one, other = model(**inputs([[3, 7, 1]], known)).tokens, model(**inputs([[7, 3, 1]], known)).tokens
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_the_residual_keeps_the_backbone_order_agnostic(tiny_setrec):
    """The residual adds a slot's own tokens to its query, so there only the order in which the backbone reads may change."""
    model, asked = tiny_setrec(cf_size=6, residual=True), inputs([[3, 7, 1, 9, 30]], features())
    asked.pop("has_cf")
    plain, generate = model(**asked).tokens, model._generate
    order = torch.tensor([2, 0, 3, 1])
    model._generate = lambda tokens, layout: generate(torch.cat([tokens[:, :2], tokens[:, 2:3, order], tokens[:, 3:]], 1), layout)
    assert (plain - model(**asked).tokens).abs().max() <= 1e-5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("slot", range(4))
@torch.no_grad()
def test_a_query_is_nothing_to_the_others(model, slot, packed):
    asked = inputs([[3, 7, 1], [2], []], features())
    before = model(**asked, packed=packed).tokens
    kept = model.queries.data.clone()
    try:
        model.queries.data[slot] += torch.randn(32)
        after = model(**asked, packed=packed).tokens
    finally:
        model.queries.data = kept
    for other in range(4):
        assert torch.equal(before[:, :, other], after[:, :, other]) == (other != slot)


@torch.no_grad()
def test_without_query_guidance_all_slots_are_asked_alike(tiny_setrec, tmp_path):
    model, guided = tiny_setrec(cf_size=6, query_guidance=False), tiny_setrec(cf_size=6)
    asked = inputs([[3, 7, 1], [2], []], features())
    tokens = model(**asked, packed=True).tokens
    assert torch.allclose(tokens, tokens[:, :, :1].expand_as(tokens), atol=1e-5)
    others = {name: values for name, values in model.state_dict().items() if name != "queries"}
    guided.load_state_dict(others | {"queries": model.queries.expand(4, -1)})
    assert torch.equal(guided(**asked, packed=True).tokens, tokens)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**asked, packed=True).tokens, tokens)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_eager_is_sdpa(backbone, tiny_setrec):
    eager, sdpa = (tiny_setrec(backbone, attention, cf_size=6) for attention in ATTENTIONS)
    asked = inputs([[3, 7, 1, 8], [2], []], features())
    assert torch.allclose(eager(**asked, packed=True).tokens, sdpa(**asked, packed=True).tokens, atol=1e-5)


# Batch = single, packed = one prefix at a time


@given(st.lists(st.lists(st.integers(0, 39), max_size=6), min_size=1, max_size=4), st.integers(0, 3), st.booleans())
@settings(max_examples=12)
@torch.no_grad()
def test_a_batch_is_its_single_requests(model, histories, left, garbage):
    known = features()
    together = model(**inputs(histories, known, left, garbage)).tokens
    index = model.index(**known)
    for row, history in enumerate(histories):
        alone = model(**inputs([history], known)).tokens
        assert alone.shape == (1, 1, 4, 32)
        assert (together[row] - alone[0]).abs().max() <= 1e-5
        assert ((model.ground(together[row]) - model.ground(alone[0])) @ index.T).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prompt", range(4))
@pytest.mark.parametrize("response", range(4))
@torch.no_grad()
def test_prompts_and_responses_of_any_length(tiny_setrec, attention, prompt, response):
    model = tiny_setrec("qwen3", attention, cf_size=6, prompt_ids=tuple(range(prompt)), response_ids=tuple(range(4, 4 + response)))
    known, histories = features(), [[3, 7, 1], [], [2]]
    together = model(**inputs(histories, known, 2), packed=True)
    for row, history in enumerate(histories):
        for count in range(len(history) + 1):
            alone = model(**inputs([history[:count]], known)).tokens[0, 0]
            column = together.tokens.shape[1] - 1 - len(history) + count
            assert together.asked[row, column]
            assert (together.tokens[row, column] - alone).abs().max() <= 1e-5
    shorter = tiny_setrec("qwen3", attention, cf_size=6, prompt_ids=tuple(range(prompt)), response_ids=tuple(range(3, 3 + response)))
    differs = (shorter(**inputs(histories, known)).tokens - together.tokens[:, -1:]).abs().max()
    assert (differs > 1e-4) == (response > 0)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_is_one_prefix_at_a_time(tiny_setrec, backbone, options):
    """Outputs and the gradient of every parameter, with items that have no CF vector and the empty history.

    In double precision but for the backbones' norms, which compute in single.
    """
    model = tiny_setrec(backbone, "sdpa", cf_size=6, prompt_ids=(3, 0), response_ids=(5,), **OPTIONS[options]).double()
    known, histories = features(dtype=torch.float64), [[3, 7, 1, 9], [2, 5], []]
    packed = model(**inputs(histories, known), packed=True)
    weights = torch.randn(packed.tokens.shape, dtype=torch.float64)
    expected = torch.zeros(3, 5, dtype=torch.bool)
    total, differences = torch.zeros((), dtype=torch.float64), []
    for row, history in enumerate(histories):
        for count in range(len(history) + 1):
            column = 4 - len(history) + count
            expected[row, column] = True
            alone = model(**inputs([history[:count]], known)).tokens[0, 0]
            differences.append((alone - packed.tokens[row, column]).abs().max())
            total = total + (alone * weights[row, column]).sum()
    assert torch.equal(packed.asked, expected)
    assert max(differences) <= 1e-6
    one = torch.autograd.grad((packed.tokens * weights)[expected].sum(), list(model.parameters()), allow_unused=True)
    other = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    reached = 0
    for (name, _), a, b in zip(model.named_parameters(), one, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= 1e-6 * max(1.0, float(b.abs().max())), name
        reached += a is not None
    assert reached >= 20


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_packed_is_one_prefix_at_a_time_in_single_precision(tiny_setrec, attention):
    model, known = tiny_setrec("qwen3", attention, cf_size=6), features()
    history = list(range(0, 40, 2))
    packed = model(**inputs([history], known), packed=True).tokens[0]
    singles = [model(**inputs([history[:count]], known)).tokens[0, 0] for count in range(len(history) + 1)]
    assert (packed - torch.stack(singles)).abs().max() <= 1e-5
    gradients = [
        torch.autograd.grad(tokens.square().mean(), [model.queries, model.cf.weight, model.semantic.encoder[0].weight])
        for tokens in (packed, torch.stack(singles))
    ]
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(*gradients, strict=True))


# The loss


@pytest.mark.parametrize("options", ["paper", "slot", "joint", "cold"])
@torch.no_grad()
def test_the_loss_against_the_definition(tiny_setrec, options):
    """Mean over targets and slots of -log softmax(Z_k q_k), + alpha x mean squared error of the histories (methods.md 1.5)."""
    model = tiny_setrec(cf_size=6, alpha=0.7, beta=0.3, **OPTIONS[options]).double()
    known = features(dtype=torch.float64)
    histories, targets = [[3, 7, 1], [2]], [[5, 7, 30, 8], [-100, -100, 11, 2]]  # user 2's last target stands in the history
    own = torch.zeros(2, 40, dtype=torch.bool)
    own[0, [3, 7, 1, 5, 30, 8]] = True
    own[1, [2, 11]] = True
    asked = inputs(histories, known)
    output = model(**asked, packed=True, candidates=known, labels=torch.tensor(targets), own=own)
    table = model.tokenize(known["semantic"], known["cf"])
    weights, share = model.slot_weights(table), model.config.fused_loss
    absent = 0.45 * model.log_scale[0].exp() if options == "cold" else torch.zeros(()).double()
    total, count = 0.0, 0
    for row, wanted in enumerate(targets):
        for column, target in enumerate(wanted):
            if target < 0:
                continue
            count += 1
            negatives = [c for c in range(40) if c == target or not own[row, c]]
            slots = []
            for slot in range(4):
                scores = table[:, slot] @ output.tokens[row, column, slot]
                slots.append(torch.where(known["has_cf"], scores, absent) if slot == 0 else scores)
            losses = [-torch.log_softmax(scores[negatives], 0)[negatives.index(target)] for scores in slots]
            fused = sum(w * scores for w, scores in zip(weights, slots, strict=True))
            total += (1 - share) * sum(losses) / 4 - share * torch.log_softmax(fused[negatives], 0)[negatives.index(target)]
    assert count == 6
    output = {name: float(output[name].detach()) for name in ("loss", "generation_loss", "reconstruction_loss")}
    assert output["generation_loss"] == pytest.approx(float(total / count), abs=1e-9)
    # Each user's mean error, as often as the user has targets.
    errors = []
    for row, targets_of_user in ((0, 4), (1, 2)):
        real = asked["semantic"][row][asked["item_mask"][row]]
        errors += [float((model.semantic.reconstruct(model.semantic(real)) - real).square().mean())] * targets_of_user
    assert output["reconstruction_loss"] == pytest.approx(sum(errors) / 6, abs=1e-9)
    assert output["loss"] == pytest.approx(output["generation_loss"] + 0.7 * output["reconstruction_loss"], abs=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_gets_a_gradient(tiny_setrec, backbone, options):
    model = tiny_setrec(backbone, cf_size=6, **OPTIONS[options]).train()
    known = features()
    labels = torch.tensor([[5, 7, 30, 8], [-100, -100, 11, 2]])
    model(**inputs([[3, 7, 1], [2]], known), packed=True, candidates=known, labels=labels).loss.backward()
    none = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert none == []


def test_own_candidates():
    items, candidates = torch.tensor([[-1, 4, 9, 4], [2, 3, 5, 8]]), torch.tensor([2, 4, 5, 9])
    marked = own_candidates(items, items, candidates)
    assert marked.tolist() == [[False, True, False, True], [True, False, True, False]]


# No leak

sequences = st.lists(st.integers(0, 59), min_size=3, max_size=8)


@given(sequences, st.lists(st.integers(0, 59), min_size=1, max_size=3))
def test_the_target_reaches_no_input(processor, sequence, others):
    """Leave-one-out, then the processor and the packed training inputs: what stands before a target knows nothing of it."""
    keep = len(sequence) - len(others)
    assume(keep >= 1)
    changed = sequence[:keep] + others
    domains = [Domain(processor.catalog, ["u"], Sequences.of([s])) for s in (sequence, changed)]
    with_cf = processor.with_cf(np.arange(60 * 6, dtype=np.float32).reshape(60, 6), np.arange(60) % 3 > 0)
    splits = [domain.leave_one_out() for domain in domains]

    def same(a, b):
        assert sorted(a) == sorted(b)
        assert all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)

    for stage, after in (("validation", 2), ("test", 1)):
        if len(others) > after:
            continue  # the history itself is another one
        read = []
        for split in splits:
            history = split.cases(stage).histories[0]
            assert len(history) == len(sequence) - after
            read.append(dict(with_cf([[processor.catalog[int(row)] for row in history]])))
        same(*read)
    trainer = SimpleNamespace(features=with_cf.features)
    prefixes = []
    for own in (sequence, changed):
        items = collate([np.array(own)])["items"]
        made = SETRecTrainer.model_inputs(trainer, items, torch.arange(60))
        assert made.pop("packed") is True
        assert made.pop("candidates")["semantic"].shape == (60, 16)
        prefixes.append({name: values[:, :keep] for name, values in made.items()})
    same(*prefixes)


@given(st.integers(0, 5))
@settings(max_examples=6)
@torch.no_grad()
def test_an_item_reaches_no_earlier_answer(model, column):
    known, history = features(), [3, 7, 1, 9, 30, 12]
    other = [*history[:column], 25, *history[column + 1 :]]
    one, two = (model(**inputs([own], known), packed=True).tokens for own in (history, other))
    assert torch.equal(one[:, : column + 1], two[:, : column + 1])
    assert all(not torch.equal(one[:, after], two[:, after]) for after in range(column + 1, 7))


# Folders


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_save_and_load(tiny_setrec, tmp_path, backbone, options):
    model = tiny_setrec(backbone, cf_size=6, prompt_ids=(3, 0), response_ids=(5,), beta=0.35, max_items=17, **OPTIONS[options])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    asked = inputs([[3, 7, 1], [2], []], features())
    for folder in ("one", "many"):
        loaded = AutoModel.from_pretrained(tmp_path / folder, dtype=torch.float32)
        assert type(loaded) is SETRecModel
        assert not loaded.training
        assert digest(loaded) == digest(model)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(loaded(**asked, packed=True).tokens, model(**asked, packed=True).tokens)
        nested = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}[backbone]
        assert type(loaded.config.text_config) is nested
        assert loaded.config.text_config.hidden_size == 32
        assert loaded.config.beta == 0.35
        assert loaded.config.max_items == 17
        assert list(loaded.config.prompt_ids) == [3, 0]
    config = AutoConfig.from_pretrained(tmp_path / "one")
    assert type(config) is SETRecConfig
    again = SETRecConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()


@torch.no_grad()
def test_on_a_pretrained_backbone(tiny_setrec, tmp_path):
    """`from_backbone` keeps the backbone's weights and puts the paper's words, in its own tokens, around the history."""
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "what", "would", "user", "buy", "next", "?", ";"])}
    words = Tokenizer(WordLevel(vocabulary, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    backbone = tiny_setrec("llama").backbone
    backbone.save_pretrained(tmp_path / "backbone")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "backbone")
    model = SETRecModel.from_backbone(
        str(tmp_path / "backbone"), "what would user buy next", "? ;", semantic_size=16, semantic_widths=(24,), cf_size=6
    ).eval()
    assert type(model.config.text_config) is LlamaConfig
    assert list(model.config.prompt_ids) == [1, 2, 3, 4, 5]
    assert list(model.config.response_ids) == [6, 7]
    assert model.backbone.state_dict().keys() == backbone.state_dict().keys()
    assert all(torch.equal(values, backbone.state_dict()[name]) for name, values in model.backbone.state_dict().items())
    asked = inputs([[3, 7, 1], []], features())
    before = model(**asked).tokens
    assert torch.isfinite(before).all()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "model")(**asked).tokens, before)


@torch.no_grad()
def test_how_a_fresh_model_starts():
    torch.manual_seed(0)
    fresh = SETRecModel(
        SETRecConfig(
            cf_size=64,
            semantic_widths=(512, 256),
            normalize="slot",
            scale=7.0,
            residual=True,
            decay=0.4,
            text_config=Qwen3Config(
                vocab_size=1, hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
            ),
        )
    )
    assert float(fresh.queries.std()) == pytest.approx(0.02, rel=0.1)
    assert torch.allclose(fresh.cf.weight.T @ fresh.cf.weight, torch.eye(64), atol=1e-4)
    assert not fresh.cf.bias.any()
    for layer in (*fresh.semantic.encoder, *fresh.semantic.decoder):
        assert float(layer.weight.std()) == pytest.approx((2 / sum(layer.weight.shape)) ** 0.5, rel=0.05)
        assert not layer.bias.any()
    assert fresh.log_scale.exp().tolist() == pytest.approx([7.0] * 5)
    assert fresh.log_decay.exp().tolist() == pytest.approx([0.4] * 5)
    own = {"residual": True, "decay": [0.1, 0.05], "cf_decay": [1.5, 0.5]}
    fresh = SETRecModel(SETRecConfig(**{**fresh.config.to_dict(), "text_config": fresh.config.text_config, **own}))
    assert fresh.log_decay.exp().flatten().tolist() == pytest.approx([1.5, 0.1, 0.1, 0.1, 0.1, 0.5, 0.05, 0.05, 0.05, 0.05])


@pytest.mark.parametrize("grounding", ["token", "latent"])
@torch.no_grad()
def test_items_without_interactions_are_ordered_by_their_texts(tiny_setrec, grounding):
    """Where the CF slot gives each of them the same, the semantic slots alone order them, and what it gives is in the score."""
    model = tiny_setrec(cf_size=6, grounding=grounding, beta=0.3, **OPTIONS["cold"])
    known = features()
    cold = ~known["has_cf"]
    scores = model.score([np.array([3, 7, 1]), np.array([2])], known)
    model.config.cold_score = 0.9
    higher = model.score([np.array([3, 7, 1]), np.array([2])], known)
    more = 0.7 * 0.45 * model.log_scale[0].exp()
    moved = (higher - scores) - (higher - scores)[:, :1]
    assert cold[0]
    assert torch.allclose(moved[:, cold], torch.zeros(()), atol=1e-5)
    assert torch.allclose(moved[:, ~cold], -more, atol=1e-5)
    generated = model(**inputs([[3, 7, 1]], known)).tokens[:, 0]
    parts = model.contributions(generated, **{name: values[None] for name, values in known.items()})[0]
    assert torch.allclose(parts[cold, 0], 2 * more, atol=1e-5)
    order = parts[cold, 1:].sum(-1).argsort(descending=True)
    assert torch.equal(order, scores[0, cold].argsort(descending=True))


def test_a_config_that_makes_no_sense():
    for bad in ({"normalize": "twice"}, {"grounding": "faiss"}, {"beta": 1.5}, {"cf_decay": [1.0, 2.0]}):
        with pytest.raises(Exception, match=next(iter(bad))):
            SETRecConfig(**bad)
    assert SETRecConfig(cf_size=4, semantic_tokens=2).slots == ["cf", "sem1", "sem2"]
    assert SETRecConfig(semantic_tokens=2).slots == ["sem1", "sem2"]
    assert type(SETRecConfig().text_config) is Qwen3Config


@torch.no_grad()
def test_processor_and_model_in_one_folder(tiny_setrec, processor, tmp_path):
    model = tiny_setrec(cf_size=6)
    full = processor.with_cf(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 2 > 0)
    model.save_pretrained(tmp_path)
    full.save_pretrained(tmp_path)
    assert {path.name for path in (tmp_path / "catalog").iterdir()} == {"items.parquet", "catalog.json", "features.safetensors"}
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SETRecProcessor
    assert loaded.catalog == full.catalog
    assert loaded.catalog.fingerprint == full.catalog.fingerprint
    assert loaded.max_items == full.max_items
    assert loaded.encoder.name == "fake"
    for name, values in full._arrays().items():
        assert loaded._arrays()[name].dtype == values.dtype
        assert loaded._arrays()[name].tobytes() == values.tobytes()
    histories = [["sku-03", "sku-10"], [], ["sku-59"]]
    one, two = full(histories), loaded(histories)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["semantic"].shape == (3, 2, 16)
    assert one["item_mask"].tolist() == [[True, True], [False, False], [False, True]]
    assert one["has_cf"].tolist() == [[True, False], [False, False], [False, True]]
    answers = [p.recommend(AutoModel.from_pretrained(tmp_path), histories) for p in (full, loaded)]
    assert answers[0] == answers[1]


def test_a_processor_without_catalogue(encoder, tmp_path):
    empty = SETRecProcessor(encoder=encoder)
    empty.save_pretrained(tmp_path)
    loaded = SETRecProcessor.from_pretrained(tmp_path)
    assert len(loaded.catalog) == 0
    with pytest.raises(ValueError, match="carries no catalogue"):
        _ = loaded.features


def test_a_tampered_folder_is_refused(processor, tmp_path):
    def saved(name):
        processor.save_pretrained(tmp_path / name)
        (tmp_path / name / "SHA256SUMS").unlink()  # as in a checkpoint without checksums; test_hub.py damages one with them
        return tmp_path / name

    folder = saved("items")
    Catalog([*processor.catalog][::-1]).to_file(folder / "catalog" / "items.parquet")
    with pytest.raises(ValueError, match=r"not those of its catalog.json.*copy the folder again"):
        SETRecProcessor.from_pretrained(folder)

    folder = saved("features")
    file = folder / "catalog" / "features.safetensors"
    save_file(load_file(file), file, metadata={"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match=r"belongs to the catalogue 000000000000.*copy or download the checkpoint again"):
        SETRecProcessor.from_pretrained(folder)

    folder = saved("short")
    file = folder / "catalog" / "features.safetensors"
    cut = {name: values[:59] if values.ndim == 2 else values for name, values in load_file(file).items()}
    save_file(cut, file, metadata={"fingerprint": processor.catalog.fingerprint})
    with pytest.raises(ValueError, match="59 items, the catalogue 60"):
        SETRecProcessor.from_pretrained(folder)

    folder = saved("lost")
    (folder / "catalog" / "features.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"a catalogue without catalog/features.safetensors"):
        SETRecProcessor.from_pretrained(folder)

    folder = saved("future")
    card = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**card, "format_version": 99}))
    with pytest.raises(ValueError, match=r"format 99.*upgrade it"):
        SETRecProcessor.from_pretrained(folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"processor_config.json is missing"):
        SETRecProcessor.from_pretrained(tmp_path / "nothing")


# Catalogues


@torch.no_grad()
def test_added_items_change_nothing_else(tiny_setrec, processor):
    model = tiny_setrec(cf_size=6)
    old = processor.with_cf(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 2 > 0)
    before, arrays = digest(model), {name: values.tobytes() for name, values in old._arrays().items()}
    new = old.add_items(
        [Item("new-1", "Dahlia espresso cup", "Lumo", "Kitchen", "A espresso cup for every day."), Item("new-2", "A trumpet")]
    )
    assert len(new.catalog) == 62
    assert len(old.catalog) == 60
    assert [item.item_id for item in new.catalog][-2:] == ["new-1", "new-2"]
    assert {name: values.tobytes() for name, values in old._arrays().items()} == arrays
    for name, values in new._arrays().items():
        assert (values if name == "centre" else values[:60]).tobytes() == arrays[name]
    tokens = [model.tokenize(p.features["semantic"][:60], p.features["cf"][:60]) for p in (old, new)]
    assert torch.equal(*tokens)
    assert torch.equal(model.index(**old.features), model.index(**new.features)[:60])
    assert not new.features["has_cf"][60:].any()
    assert not new.features["cf"][60:].any()
    cup = [row for row, item in enumerate(old.catalog) if "espresso cup" in item.title]
    cosine = new.features["semantic"][60] @ new.features["semantic"][:60].T
    assert set(cosine.topk(3).indices.tolist()) == set(cup)
    assert len(new.recommend(model, [["sku-01"]], top=62)[0]) == 61
    assert digest(model) == before


@torch.no_grad()
def test_another_catalogue(tiny_setrec, processor, caplog):
    model = tiny_setrec(cf_size=6)
    before = digest(model)
    other = Catalog([Item("x1", "Brass trumpet"), Item("x2", "Silver flute"), Item("x3", "Drum kit")])
    trained = processor.with_cf(np.ones((60, 6), np.float32))
    with caplog.at_level(logging.WARNING):
        swapped = trained.with_catalog(other)
    assert trained.catalog.fingerprint[:12] in caplog.text
    assert other.fingerprint[:12] in caplog.text
    assert "texts alone" in caplog.text
    assert "cf" not in swapped.features
    assert "cf" in trained.features
    assert trained.with_catalog(Catalog([*processor.catalog])) is trained
    answers = swapped.recommend(model, [["Silver flute"]])[0]
    assert {answer.item.item_id for answer in answers} == {"x1", "x3"}
    assert all(token["score"] == 0 for answer in answers for token in answer.identifier["tokens"] if token["slot"] == "cf")
    assert digest(model) == before
    caplog.clear()
    processor.with_catalog(other)
    assert "CF" not in caplog.text


def test_features_of_another_catalogue_are_refused(processor, encoder):
    with pytest.raises(ValueError, match="60 items, the catalogue 59"):
        SETRecProcessor(processor.catalog[:59], processor._arrays(), encoder)


def test_the_centre_is_the_catalogues(processor, encoder, shop):
    raw = encoder.encode([item.line for item in shop])
    moved = raw - raw.mean(0)
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    assert np.allclose(processor.features["semantic"].numpy(), expected, atol=1e-6)
    typed = processor([["something else entirely"]])["semantic"][0, 0].numpy()
    own = encoder.encode(["something else entirely"])[0] - raw.mean(0)
    assert np.allclose(typed, own / np.linalg.norm(own), atol=1e-6)
    single = SETRecProcessor(Catalog([Item("a", "One thing")]), encoder=encoder).features["semantic"]
    assert float(single.norm()) == pytest.approx(1.0, abs=1e-5)


def test_histories_are_cut_to_the_last_items(processor, encoder):
    short = SETRecProcessor(processor.catalog, processor._arrays(), encoder, max_items=3)
    ids = [item.item_id for item in processor.catalog][:7]
    assert torch.equal(short([ids])["semantic"], processor([ids[-3:]])["semantic"])
    with pytest.raises(TypeError, match="list of histories"):
        processor("sku-01")


# Recommendations


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cf", [0, 6])
@torch.no_grad()
def test_tokens_add_up_and_reasons_share(tiny_setrec, processor, options, cf):
    options = dict(OPTIONS[options])
    if not cf:
        options.pop("slot_weights", None)
        options.pop("cf_decay", None)
    model = tiny_setrec(cf_size=cf, beta=0.4, **options)
    if cf:
        processor = processor.with_cf(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 2 > 0)
    histories = [["sku-01", "sku-22", "sku-40"], ["sku-07"], [], ["brass trumpet", "sku-09"]]
    known = processor.features
    answers = processor.recommend(model, histories, top=12)
    for history, own in zip(histories, answers, strict=True):
        assert [answer.rank for answer in own] == list(range(1, 13))
        assert [answer.score for answer in own] == sorted((answer.score for answer in own), reverse=True)
        generated = model(**processor([history])).tokens[:, 0]
        table = model.contributions(generated, **{name: values[None] for name, values in known.items()})[0].sum(-1)
        rows = [processor.catalog.row(answer.item.item_id) for answer in own]
        assert np.allclose([answer.score for answer in own], table[rows].tolist(), atol=1e-4)
        left = [row for row in range(60) if processor.catalog[row].item_id not in history]
        assert rows == sorted(left, key=lambda row: -float(table[row]))[:12]
        for answer in own:
            tokens = answer.identifier["tokens"]
            assert [token["slot"] for token in tokens] == model.config.slots
            assert sum(token["score"] for token in tokens) == pytest.approx(answer.score, abs=1e-4)
            assert all(isinstance(token["label"], str) and token["label"].strip() for token in tokens)
            if answer.because is not None:
                assert 0 < answer.because["share"] <= 1
                assert answer.because["item"]["title"] in {item.title for item in processor.read(history)}
    assert all(answer.because is None for answer in answers[2])
    assert all(answer.because["share"] == 1 for answer in answers[1] if answer.because)
    nothing = model.contributions(model(**processor([[]])).tokens[:, 0], **{name: values[None] for name, values in known.items()})[0].sum(
        -1
    )
    fallen = [answer.score > float(nothing[processor.catalog.row(answer.item.item_id)]) for answer in answers[1]]
    assert [answer.because is not None for answer in answers[1]] == fallen  # beside the opening offer


@torch.no_grad()
def test_because_is_the_fall_when_left_out(tiny_setrec, processor):
    model, history = tiny_setrec(), ["sku-01", "sku-22", "sku-40"]
    known = {"semantic": processor.features["semantic"][None]}

    def score(lines):
        return model.contributions(model(**processor([lines])).tokens[:, 0], **known)[0].sum(-1)

    whole = score(history)
    falls = torch.stack([(whole - score([line for line in history if line != out])).clamp(min=0) for out in history])
    for answer in processor.recommend(model, [history], top=20)[0]:
        own = falls[:, processor.catalog.row(answer.item.item_id)]
        if own.sum() < 1e-4:
            continue
        assert answer.because is not None
        assert answer.because["item"]["item_id"] == history[int(own.argmax())]
        assert answer.because["share"] == pytest.approx(float(own.max() / own.sum()), abs=1e-3)


def test_identifiers_of_a_catalogue(tiny_setrec, processor):
    model, seen = tiny_setrec(), []
    listed = processor.identify(model, lambda done, total: seen.append((done, total)))
    assert [entry["item_id"] for entry in listed] == processor.catalog.ids
    assert seen == [(60, 60)]
    for entry, item in zip(listed, processor.catalog, strict=True):
        assert entry["title"] == item.title
        assert [token["slot"] for token in entry["identifier"]["tokens"]] == ["sem1", "sem2", "sem3"]
        assert all(token["label"].strip() for token in entry["identifier"]["tokens"])
    assert json.loads(json.dumps(listed)) == listed


def test_labels_are_made_once_for_the_same_weights(tiny_setrec, processor, monkeypatch):
    made, real = [], processing_setrec.labels_of
    monkeypatch.setattr(processing_setrec, "labels_of", lambda *given: made.extend(given[-1]) or real(*given))
    model, other = tiny_setrec(), tiny_setrec(seed=1)
    first = processor.label_tokens(model, [3, 8], None)
    assert [entry["identifier"]["tokens"] for entry in processor.identify(model)][3:9:5] == first
    assert made == [3, 8, *(row for row in range(60) if row not in (3, 8))]
    made.clear()
    assert processor.label_tokens(model, [8, 3], None) == first[::-1]
    assert made == []
    processor.label_tokens(other, [8], None)
    processor.label_tokens(model, [8], None)
    with torch.no_grad():
        model.semantic.last.weight += 1
    processor.label_tokens(model, [8], None)
    assert made == [8, 8, 8]


@pytest.mark.parametrize("fused", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("cf", "cold"), [(0, 0.0), (6, 0.0), (6, 0.4)])
def test_latent_loss_equals_the_per_token_loss(fused, cf, cold):
    """Design decision 6: the same loss and gradients in the tokenizers' own latent space, absent CF vectors and own items included."""
    torch.manual_seed(0)
    config = SETRecConfig(
        text_config=Qwen3Config(
            vocab_size=1,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
        ),
        **{"semantic_tokens": 3, "semantic_size": 16, "semantic_widths": (12, 8), "cf_size": cf, "fused_loss": fused, "beta": 0.3},
        cold_score=cold,
        normalize="slot" if cold else "none",
    )
    model = SETRecModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    users, length, size = 4, 5, 30
    has_cf, known = torch.rand(users, length) > 0.3, torch.rand(size) > 0.3
    inputs = {"semantic": torch.randn(users, length, 16).double(), "item_mask": torch.ones(users, length, dtype=torch.bool)}
    candidates = {"semantic": torch.randn(size, 16).double()}
    if cf:
        inputs |= {"cf": torch.randn(users, length, cf).double() * has_cf[..., None], "has_cf": has_cf}
        candidates |= {"cf": torch.randn(size, cf).double() * known[:, None], "has_cf": known}
    labels, own = torch.randint(size, (users, length + 1)), torch.rand(users, size) < 0.2
    results = []
    for form in ("token", "latent"):
        model.config.grounding = form
        assert model.loss_in_latent_space == (form == "latent")
        model.zero_grad()
        loss = model(**inputs, packed=True, candidates=candidates, labels=labels, own=own).loss
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (plain, gradients), (latent, others) = results
    assert torch.allclose(plain, latent, atol=1e-9)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-9), name
