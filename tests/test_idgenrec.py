"""IDGenRec: what the model, its prompts and its processor have to keep, for every kind of language model."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

import genrec_hub
from genrec_hub.beam_search import score_all
from genrec_hub.catalog import Catalog, Item
from genrec_hub.configuration_idgenrec import IDGenRecConfig
from genrec_hub.copying import flat_tokens, promising
from genrec_hub.modeling_idgenrec import IDGenRecModel, continuation_logits, tree_loss
from genrec_hub.pipeline import TASK, RecommendationPipeline
from genrec_hub.processing_idgenrec import IDGenRecProcessor
from genrec_hub.prompts import PROMPTS, TEMPLATES, PromptWriter, labels_of, pad_prompts, pad_tokens, soft_places
from genrec_hub.trie import Trie

KINDS = [("qwen3", "t5"), ("t5", "t5"), ("llama", "qwen3"), ("gemma3", "gemma3"), ("t5", "qwen2")]
HISTORIES = [["sku-03", "sku-10", "sku-31"], ["sku-22"], ["sku-01", "sku-02", "sku-40", "sku-41", "sku-17", "sku-18"]]


def kind_of(recommender: str) -> dict[str, object]:
    return {"prompt": "item", "encoder": True} if recommender == "t5" else {"prompt": "packed"}


@pytest.fixture(params=KINDS, ids="-".join)
def pair(request, tiny_idgenrec, id_processor):
    recommender, generator = request.param
    return tiny_idgenrec(recommender, generator), id_processor(**kind_of(recommender))


def teacher_forced(model, processor, history: list[int], row: int) -> float:
    """The log-probability of an item's ID by one plain forward."""
    tokens = processor._tokens
    inputs = processor.inputs([[tokens[item] for item in history]], model)
    target = torch.tensor([[*tokens[row], processor.writer.eos]])
    if model.config.has_encoder:
        start = torch.tensor([[model.recommender.config.decoder_start_token_id]])
        logits = model.recommender(**inputs, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits
    else:
        logits = model.recommender(input_ids=torch.cat([inputs["input_ids"], target[:, :-1]], 1)).logits[:, -target.shape[1] :]
    return float(logits.detach().log_softmax(-1).gather(2, target[..., None]).sum())


# Decoding


def test_beam_scores_are_teacher_forced_log_probabilities(pair):
    model, processor = pair
    model.config.length_penalty = 0.0
    for history, answers in zip(HISTORIES, processor.recommend(model, HISTORIES, top=5), strict=True):
        rows = [processor.catalog.row(item) for item in history]
        for answer in answers:
            row = processor.catalog.row(answer.item.item_id)
            assert answer.score == pytest.approx(teacher_forced(model, processor, rows, row), abs=1e-4)
            assert answer.identifier["logprob"] == pytest.approx(answer.score, abs=1e-5)
            assert answer.identifier["text"] == processor.identifiers.texts[row]
            assert "".join(answer.identifier["tokens"]) == answer.identifier["text"].replace(" ", "")


@pytest.mark.parametrize("normalizer", ["vocabulary", "tree"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_as_many_beams_as_items_find_the_exact_best(pair, penalty, normalizer):
    model, processor = pair
    model.config.length_penalty, model.config.normalizer = penalty, normalizer
    tokens = processor._tokens
    histories = [[tokens[processor.catalog.row(item)] for item in history] for history in HISTORIES]
    inputs = processor.inputs(histories, model)
    exact = model.score(inputs, processor.trie)
    found = model.recommend(inputs, processor.trie, beams=len(processor.catalog))
    for row in range(len(HISTORIES)):
        assert sorted(found.rows[row].tolist()) == list(range(len(processor.catalog)))
        assert torch.allclose(exact[row, found.rows[row]], found.scores[row], atol=1e-4)


def test_a_tree_is_a_distribution_over_items_and_its_loss_their_likelihood(pair):
    model, processor = pair
    model.config.normalizer, model.config.length_penalty = "tree", 0.0
    tokens, trie = processor._tokens, processor.trie
    inputs = processor.inputs([[tokens[3], tokens[10]], [tokens[22]]], model)
    scores = model.score(inputs, trie)
    assert torch.allclose(scores.exp().sum(1), torch.ones(2), atol=1e-4)
    some = torch.tensor([7, 2, 41])
    assert torch.allclose(model.score(inputs, trie, some), scores[:, some], atol=1e-5)
    found = model.recommend(inputs, trie, beams=5, excluded=[[3, 10], [22]])
    assert torch.allclose(found.scores, scores.gather(1, found.rows), atol=1e-4)
    paths = trie.paths(torch.tensor([5, 7]))
    before = torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1].clamp(min=0)], 1)
    labels = labels_of([tokens[5], tokens[7]], processor.writer.eos)
    loss = model(**inputs, labels=labels, nodes=before[:, : labels.shape[1]], trie=trie, num_items_in_batch=1).loss
    assert float(loss.detach()) == pytest.approx(-float(scores[0, 5] + scores[1, 7]), abs=1e-4)


def test_logits_of_edges_are_the_same_alone_and_out_of_all(pair, monkeypatch):
    """With their gradients: where a node has many children the whole head is multiplied."""
    model, processor = pair
    trie, tokens = processor.trie, processor._tokens
    head = model.recommender.get_output_embeddings().weight
    rows = [5, 7, 22]
    nodes = torch.cat([torch.tensor([trie.root, *trie.paths(torch.tensor([row]))[0][: len(tokens[row])].tolist()]) for row in rows])
    labels = torch.tensor([token for row in rows for token in (*tokens[row], processor.writer.eos)])
    found = []
    for apart in (0, 10**9):
        monkeypatch.setattr("genrec_hub.decoding._APART", apart)
        states = torch.randn(len(nodes), head.shape[1], generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = tree_loss(model.recommender, states, labels, nodes, trie)
        found.append((loss.detach(), *torch.autograd.grad(loss, (states, head))))
    for alone, whole in zip(*found, strict=True):
        assert torch.allclose(alone, whole, rtol=1e-5, atol=1e-5)
        assert alone.abs().max() > 0


def test_batch_equals_single(pair):
    model, processor = pair
    together = processor.recommend(model, HISTORIES, top=8)
    for history, answers in zip(HISTORIES, together, strict=True):
        (alone,) = processor.recommend(model, [history], top=8)
        assert [a.item.item_id for a in alone] == [a.item.item_id for a in answers]
        assert [a.score for a in alone] == pytest.approx([a.score for a in answers], abs=1e-5)


def test_recommendations_are_legal_and_unseen(pair):
    model, processor = pair
    for history, answers in zip(HISTORIES, processor.recommend(model, HISTORIES, top=60), strict=True):
        ids = [answer.item.item_id for answer in answers]
        assert len(ids) == len(set(ids)) == len(processor.catalog) - len(history)
        assert not set(ids) & set(history)
        assert [answer.rank for answer in answers] == list(range(1, len(ids) + 1))
    (answers,) = processor.recommend(model, [["sku-03"]], top=5, department="Kitchen")
    assert {answer.item.department for answer in answers} == {"Kitchen"}
    with pytest.raises(ValueError, match=r"No item is of the department 'Boats'"):
        processor.recommend(model, [["sku-03"]], department="Boats")


def test_because_is_the_fall_without_an_item(pair):
    model, processor = pair
    model.config.length_penalty = 0.0
    rows = [processor.catalog.row(item) for item in HISTORIES[0]]
    (answers,) = processor.recommend(model, HISTORIES[:1], top=3)
    for answer in answers:
        target = processor.catalog.row(answer.item.item_id)
        whole = teacher_forced(model, processor, rows, target)
        falls = [max(0.0, whole - teacher_forced(model, processor, rows[:place] + rows[place + 1 :], target)) for place in range(3)]
        if max(falls) > 1e-4:
            assert answer.because["item"]["item_id"] == HISTORIES[0][int(np.argmax(falls))]
            assert answer.because["share"] == pytest.approx(max(falls) / sum(falls), abs=1e-3)


def test_beams_on_demand_are_those_of_the_search(pair):
    model, processor = pair
    beams = processor.beams(model, HISTORIES[0], beams=10)
    (answers,) = processor.recommend(model, HISTORIES[:1], top=10)
    assert [beam["item"]["item_id"] for beam in beams] == [answer.item.item_id for answer in answers]
    assert [beam["logprob"] for beam in beams] == pytest.approx([answer.identifier["logprob"] for answer in answers], abs=1e-5)


# Training


@pytest.mark.parametrize("normalizer", ["vocabulary", "tree"])
@pytest.mark.parametrize("kind", [("qwen3", "t5"), ("t5", "t5")], ids="-".join)
def test_a_copy_bias_is_added_to_the_logits_wherever_they_are_made(tiny_idgenrec, id_processor, normalizer, kind):
    """Search, exact scores and training see the same numbers; the bias itself is the formula of its docstring."""
    model, processor = tiny_idgenrec(*kind), id_processor(**kind_of(kind[0]))
    model.config.normalizer, model.config.length_penalty = normalizer, 0.0
    plain = processor.recommend(model, HISTORIES, top=5)
    processor.copy, processor.copy_decay = 3.0, 0.5
    tokens, trie = processor._tokens, processor.trie
    history = [3, 10, 31]
    bias = processor.copy_bias([tokens[item] for item in history])
    for token in range(bias.shape[1]):
        holders = sum(token in own for own in tokens)
        rarity = np.log((len(tokens) + 1) / holders) / np.log(len(tokens) + 1) if holders else 0.0
        for prefix in range(4):
            want = sum(np.exp(-0.5 * (prefix - 1 - place)) for place, item in enumerate(history[:prefix]) if token in tokens[item])
            assert float(bias[prefix, token]) == pytest.approx(3.0 * want * rarity, abs=1e-5)
    inputs = processor.inputs([[tokens[item] for item in history]], model)
    assert torch.equal(inputs["bias"][0], bias[-1])
    scores = model.score(inputs, trie)
    found = model.recommend(inputs, trie, beams=60)
    assert torch.allclose(found.scores, scores.gather(1, found.rows), atol=1e-4)
    paths = trie.paths(torch.tensor([5]))
    before = torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1].clamp(min=0)], 1)
    labels = labels_of([tokens[5]], processor.writer.eos)
    own = {name: values for name, values in inputs.items() if name != "bias"}
    loss = model(
        **own, labels=labels, nodes=before[:, : labels.shape[1]], trie=trie if normalizer == "tree" else None,
        bias=bias, owner=torch.full_like(labels, 3), num_items_in_batch=1,
    ).loss  # fmt: skip
    assert float(loss.detach()) == pytest.approx(-float(scores[0, 5]), abs=1e-4)
    together = processor.recommend(model, HISTORIES, top=5)
    assert [a.score for a in together[0]] != [a.score for a in plain[0]]
    (alone,) = processor.recommend(model, HISTORIES[2:], top=5)
    assert [a.score for a in alone] == pytest.approx([a.score for a in together[2]], abs=1e-5)
    processor.copy = 0.0


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_shortlist_holds_what_the_copied_words_promise(tiny_idgenrec, id_processor, penalty):
    """The promise is the exact score of a model that says nothing; as many beams as promising items find them all."""
    model, processor = tiny_idgenrec(), id_processor()
    model.config.length_penalty, model.config.beams = penalty, 12
    processor.copy, processor.copy_decay = 3.0, 0.2
    history, size = [3, 10, 31], len(processor.catalog)
    inputs = processor.inputs([[processor._tokens[item] for item in history]], model)
    quiet = tiny_idgenrec()
    quiet.config.length_penalty = penalty
    with torch.no_grad():
        quiet.recommender.model.norm.weight.zero_()
    promised = quiet.score(inputs, processor.trie)[0]
    promised[history] = -torch.inf
    open_ = torch.ones(1, size, dtype=torch.bool)
    flat = flat_tokens(processor._tokens)
    open_[0, history] = False
    best = promising(flat, inputs["bias"], 12, penalty, open_)[0]
    assert int(best.sum()) == 12
    assert float(promised[best].min()) >= float(promised[~best].max()) - 1e-4
    assert int(promising(flat, inputs["bias"], size, penalty, open_).sum()) == size - 3, "what may not come is not promising"

    processor.shortlist = 12
    scores = processor.score(model, [np.array(history)])[0]
    assert torch.equal(scores > -torch.inf, best)
    assert torch.allclose(scores[best], model.score(inputs, processor.trie)[0][best], atol=1e-4)
    items = [processor.catalog[item] for item in history]
    answers = processor.recommend(model, [[item.item_id for item in items]], top=12)[0]
    assert [answer.score for answer in answers] == pytest.approx(scores[best].sort(descending=True).values.tolist(), abs=1e-4)
    department = next(answer.item for answer in answers if answer.item.categories).categories.split(" > ")[0]
    inside = processor.recommend(model, [[item.item_id for item in items]], top=3, department=department)[0]
    assert inside
    assert all(department in answer.item.categories for answer in inside)


@pytest.mark.parametrize("normalizer", ["vocabulary", "tree"])
def test_packed_equals_every_prefix_alone(tiny_idgenrec, id_processor, normalizer):
    """Loss and gradient of a history's single forward are those of one forward per item."""
    model, processor = tiny_idgenrec(), id_processor()
    trie = processor.trie if normalizer == "tree" else None
    paths = [[0, *own[own >= 0].tolist()[:-1]] for own in processor.trie.paths(torch.arange(len(processor.catalog)))]
    tokens = processor._tokens
    histories = [[3, 10, 31, 5], [22, 7]]
    count = sum(len(tokens[item]) + 1 for own in histories for item in own)
    rows = [[token for item in own for token in (*tokens[item], processor.writer.eos)] for own in histories]
    start = torch.full((2, 1), processor.prompts.start)
    nodes, _ = pad_tokens([[node for item in own for node in paths[item]] for own in histories], 0)
    labels = labels_of([row[:-1] for row in rows], processor.writer.eos)
    packed = model(input_ids=start, labels=labels, nodes=nodes, trie=trie, num_items_in_batch=count)
    packed.loss.backward()
    gradients = {name: values.grad.clone() for name, values in model.recommender.named_parameters()}
    model.zero_grad()
    prompts = [processor.prompts.write([tokens[i] for i in own[:place]]) for own in histories for place in range(len(own))]
    targets = [tokens[own[place]] for own in histories for place in range(len(own))]
    nodes, _ = pad_tokens([paths[item] for own in histories for item in own], 0)
    labels = labels_of(targets, processor.writer.eos)
    plain = model(**pad_prompts(prompts, processor.writer.pad), labels=labels, nodes=nodes, trie=trie, num_items_in_batch=count)
    plain.loss.backward()
    assert packed.loss.item() == pytest.approx(plain.loss.item(), abs=1e-5)
    for name, values in model.recommender.named_parameters():
        assert torch.allclose(gradients[name], values.grad, atol=1e-5), name


def test_padding_carries_no_loss_and_is_not_read(pair):
    model, processor = pair
    tokens = processor._tokens
    prompts = [processor.prompts.write([tokens[3], tokens[10], tokens[31]]), processor.prompts.write([tokens[22]])]
    labels = labels_of([tokens[5], tokens[7]], processor.writer.eos)
    together = model(**pad_prompts(prompts, processor.writer.pad), labels=labels, num_items_in_batch=1).loss
    alone = [
        model(
            **pad_prompts([prompt], processor.writer.pad), labels=labels_of([tokens[item]], processor.writer.eos), num_items_in_batch=1
        ).loss
        for prompt, item in zip(prompts, (5, 7), strict=True)
    ]
    assert together.item() == pytest.approx(sum(one.item() for one in alone), abs=1e-4)
    longer = F.pad(labels, (0, 3), value=-100)
    assert model(**pad_prompts(prompts, processor.writer.pad), labels=longer, num_items_in_batch=1).loss.item() == pytest.approx(
        together.item(), abs=1e-4
    )
    texts, mask = pad_tokens(processor.writer.text_tokens(["argan oil", "a wooden puzzle for children"]), processor.writer.pad, left=True)
    both = model(text_ids=texts, text_mask=mask, labels=labels, num_items_in_batch=1).loss
    one = [
        model(text_ids=texts[row : row + 1][:, mask[row] > 0], labels=labels[row : row + 1], num_items_in_batch=1).loss for row in (0, 1)
    ]
    assert both.item() == pytest.approx(sum(loss.item() for loss in one), abs=1e-4)


def soft_batch(model, processor):
    """Two prompts of three items, whose texts the generator has written about, and two targets."""
    items = [3, 10, 31]
    texts, mask = pad_tokens(processor.writer.text_tokens([processor.catalog[i].line for i in items]), processor.writer.pad, left=True)
    written = model.write({"input_ids": texts, "attention_mask": mask}, penalty=0.0, min_length=2, groups=1)
    lengths = written.lengths[:, 0].tolist()
    tokens = written.tokens[:, 0]
    own = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    orders = [[0, 1, 2], [2, 0]]
    prompts = [processor.prompts.write([own[row] for row in order]) for order in orders]
    batch = pad_prompts(prompts, processor.writer.pad)
    soft = torch.full_like(batch["input_ids"], -1)
    for line, (prompt, order) in enumerate(zip(prompts, orders, strict=True)):
        soft[line, soft.shape[1] - len(prompt.tokens) :] = torch.tensor(soft_places(prompt, order, tokens.shape[1]))
    beyond = torch.arange(tokens.shape[1])[None] > torch.tensor(lengths)[:, None]
    labels = labels_of([processor._tokens[5], processor._tokens[7]], processor.writer.eos)
    return batch, {"text_ids": texts, "text_mask": mask, "written": tokens.masked_fill(beyond, -100), "soft": soft}, labels


def test_soft_tokens_with_one_hot_logits_are_the_hard_path(pair, monkeypatch):
    model, processor = pair
    batch, more, labels = soft_batch(model, processor)
    assert (more["soft"] >= 0).sum() == (more["soft"] >= 0).sum(1).sum() > 0
    hard = model(**batch, labels=labels).loss
    mixed = model(**batch, **more, labels=labels).loss
    assert abs(float(hard) - float(mixed)) > 1e-5

    real = continuation_logits

    def one_hot(part, prompt, mask, continuation):
        logits = real(part, prompt, mask, continuation)
        sure = F.one_hot(continuation.clamp(min=0), logits.shape[-1]).float() * 1e4
        return sure if part is model.generator else logits

    monkeypatch.setattr("genrec_hub.modeling_idgenrec.continuation_logits", one_hot)
    assert float(model(**batch, **more, labels=labels).loss) == pytest.approx(float(hard), abs=1e-6)


def test_soft_tokens_are_a_softmax_average(pair):
    model, processor = pair
    _, more, _ = soft_batch(model, processor)
    mixed = model.soft_tokens(more["text_ids"], more["text_mask"], more["written"])
    words = model.recommender.get_input_embeddings()
    embedded = model.generator.get_input_embeddings()(more["text_ids"])
    weights = continuation_logits(model.generator, embedded, more["text_mask"], more["written"]).softmax(-1)
    plain = torch.einsum("ptw,wd->ptd", weights, words(torch.arange(weights.shape[-1])))
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-5)
    assert torch.allclose(mixed, plain, atol=1e-5)


@pytest.mark.parametrize("part", ["generator", "recommender"])
def test_gradient_reaches_the_trained_part_alone(pair, part):
    model, processor = pair
    batch, more, labels = soft_batch(model, processor)
    model.train_only(part)
    model(**batch, **(more if part == "generator" else {}), labels=labels).loss.backward()
    for name, values in model.named_parameters():
        if name.startswith(part):
            assert values.grad is not None, name
        else:
            assert values.grad is None, name
    own = [values.grad.abs().sum() for values in getattr(model, part).parameters()]
    assert min(own) > 0


def test_a_frozen_part_has_no_dropout(tiny_idgenrec):
    model = tiny_idgenrec().train_only("generator").train()
    assert model.generator.training
    assert not model.recommender.training
    assert model.train_only("both").train().recommender.training


# Prompts


def test_ten_wordings_for_each_kind(id_processor):
    tokenizer = id_processor().tokenizer
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 10
    for kind in ("item", "user", "both"):
        writer = PromptWriter(tokenizer, kind, encoder=True)
        said = [tokenizer.decode(writer.write([[7, 8], [9]], [5], wording).tokens) for wording in range(len(writer))]
        assert len(set(said)) == 10
        history, user = tokenizer.decode([7, 8]).strip(), tokenizer.decode([5]).strip()
        for text in said:
            assert not set("[]{}") & set(text)
            assert (history in text) == (kind != "user")
            assert (user in text) == (kind != "item")


def test_prompts_know_where_each_item_stands(id_processor):
    tokenizer = id_processor().tokenizer
    history = [[17, 18, 19], [30], [40, 41]]
    for kind in PROMPTS:
        prompt = PromptWriter(tokenizer, kind, encoder=False).write(history, [5, 6])
        for place, own in enumerate(history):
            assert [t for t, item in zip(prompt.tokens, prompt.items, strict=True) if item == place] == (own if kind != "user" else [])
        places = soft_places(prompt, [4, 0, 2], 5)
        assert [p for p in places if p >= 0] == ([20, 21, 22, 0, 10, 11] if kind != "user" else [])
    with pytest.raises(ValueError, match="decoder-only"):
        PromptWriter(tokenizer, "packed", encoder=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_nothing_at_or_after_the_target_reaches_an_input(tiny_idgenrec, id_processor, prompt):
    """Whatever is asked after three items is the same, byte for byte, for every continuation of the history."""
    encoder = prompt != "packed"
    model, processor = tiny_idgenrec("t5" if encoder else "qwen3"), id_processor(prompt, encoder)
    tokens = processor._tokens
    ours = [3, 10, 31]
    bytes_of = set()
    for after in ([5, 6], [50, 51], [22, 7]):
        whole = [*ours, *after]
        inputs = processor.inputs([[tokens[item] for item in whole[: len(ours)]]], model)
        bytes_of.add(tuple(values.numpy().tobytes() for values in inputs.values()))
    assert len(bytes_of) == 1


def test_user_ids_are_written_about_the_history_alone(tiny_idgenrec, id_processor):
    model, processor = tiny_idgenrec("t5"), id_processor("both", True)
    tokens = processor._tokens
    first, second, again = processor.user_tokens([[tokens[3], tokens[10]], [tokens[22]], [tokens[3], tokens[10]]], model)
    assert first == again
    assert first
    assert second
    with pytest.raises(ValueError, match="pass model"):
        processor(["argan oil"])


def test_a_user_id_is_written_about_the_last_ids_that_there_is_room_for(tiny_idgenrec, id_processor):
    model, processor = tiny_idgenrec("t5"), id_processor("both", True)
    read: list[str] = []
    plain = processor.writer.write
    processor.writer.write = lambda model, texts, **named: read.extend(texts) or plain(model, texts, **named)
    history, room = [processor._tokens[row] for row in range(40)], processor.writer.max_text - 1
    processor.user_tokens([history, [list(range(5, 50))], []], model)
    last = next(own for own in (history[-count:] for count in range(40, 0, -1)) if sum(map(len, own)) <= room)
    assert 1 < len(last) < 40
    told = ([token for own in last for token in own], list(range(5, 50)))
    assert read == [*(processor.tokenizer.decode(tokens).strip() for tokens in told), "new"]


# Catalogues


def test_a_new_catalogue_gets_ids_and_a_larger_one_keeps_them(tiny_idgenrec, id_processor):
    model, processor = tiny_idgenrec(), id_processor()
    items = [Item(f"new-{n}", f"Velvet lamp {n}", "Okapi", "Lighting") for n in range(7)]
    fresh = processor.with_catalog(Catalog(items), model=model)
    assert len(set(fresh.identifiers.texts)) == 7
    assert fresh.identifiers.fingerprint == model.fingerprint
    grown = fresh.add_items([Item("later-1", "Brass hook"), Item("later-2", "Brass hook")], model=model)
    assert grown.identifiers.texts[:7] == fresh.identifiers.texts
    assert [own.tobytes() for own in grown.identifiers.tokens[:7]] == [own.tobytes() for own in fresh.identifiers.tokens]
    assert len(set(grown.identifiers.texts)) == 9
    (answers,) = grown.recommend(model, [["new-1", "a lamp of brass"]], top=9)
    assert {answer.item.item_id for answer in answers} == {item.item_id for item in grown.catalog} - {"new-1"}
    for row, own in enumerate(grown.identifiers.tokens):
        assert grown.tokenizer.encode(grown.identifiers.texts[row], add_special_tokens=False) == own.tolist()
    with pytest.raises(ValueError, match="pass the model"):
        processor.with_catalog(Catalog(items))
    assert processor.with_catalog(processor.catalog) is processor


def test_indexing_tells_how_far_it_is_and_can_be_stopped(tiny_idgenrec, id_processor, monkeypatch):
    monkeypatch.setattr("genrec_hub.writing.WRITTEN_AT_ONCE", 4)
    model, processor = tiny_idgenrec(), id_processor()
    items, told = Catalog([Item(f"n-{n}", f"Brass hook {n}") for n in range(20)]), []
    processor.with_catalog(items, lambda done, total: told.append((done, total)), model)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0] == (4, 20)
    assert told[-1] == (20, 20)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processor.with_catalog(items, stop, model)


def test_writing_does_not_depend_on_the_batch(tiny_idgenrec, id_processor):
    for generator in ("t5", "qwen3"):
        model, processor = tiny_idgenrec(generator=generator), id_processor()
        texts = processor.catalog.lines[:9]
        together = processor.writer.write(model, texts, penalty=2.0)
        assert together == [processor.writer.write(model, [text], penalty=2.0)[0] for text in texts]


def test_typed_lines_are_written_about_once(pair, monkeypatch):
    model, processor = pair
    asked, real = [], processor.writer.write
    monkeypatch.setattr(processor.writer, "write", lambda model, texts, **how: asked.extend(texts) or real(model, texts, **how))
    history = processor.read(["Aurora kite", "something of argan oil", "qwertz asdf"])
    first = processor.history_tokens([history], model)
    count = len(asked)
    assert count == sum(match.row is None for match in history.matches) >= 1
    assert processor.history_tokens([history], model) == first
    assert len(asked) == count
    with torch.no_grad():
        next(model.generator.parameters()).mul_(-1)
    processor.history_tokens([history], model)
    assert len(asked) == 2 * count


def test_another_generator_has_another_fingerprint(tiny_idgenrec):
    one, two = tiny_idgenrec(), tiny_idgenrec()
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        next(iter(two.recommender.parameters())).add_(1)
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        next(iter(two.generator.parameters())).add_(1)
    assert one.fingerprint != two.fingerprint


# Folders and the pipeline


def test_round_trip(pair, tmp_path):
    model, processor = pair
    pipe = RecommendationPipeline(model=model, processor=processor, task=TASK)
    pipe.save_pretrained(tmp_path)
    loaded = genrec_hub.load(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), IDGenRecModel)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), IDGenRecProcessor)
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    assert loaded([*HISTORIES], top_k=4) == pipe([*HISTORIES], top_k=4)
    assert loaded.identify() == pipe.identify()
    assert loaded.identify()[0]["identifier"]["text"] == processor.identifiers.texts[0]


def test_identifiers_of_another_catalogue_are_refused(tiny_idgenrec, id_processor, tmp_path):
    model, processor = tiny_idgenrec(), id_processor()
    RecommendationPipeline(model=model, processor=processor, task=TASK).save_pretrained(tmp_path)
    Catalog(list(processor.catalog)[::-1]).save(tmp_path / "catalog")
    with pytest.raises(ValueError, match="another checkpoint's"):
        genrec_hub.load(tmp_path)


def test_ranker_scores_are_those_of_the_beams(tiny_idgenrec, id_processor):
    model, processor = tiny_idgenrec(), id_processor()
    histories = [np.array([3, 10]), np.array([22]), np.array([1, 2, 40])]
    scores = processor.score(model, histories)
    for row, history in enumerate(histories):
        (answers,) = processor.recommend(model, [[processor.catalog[i].item_id for i in history]], top=10, explain=False)
        best = [processor.catalog.row(answer.item.item_id) for answer in answers]
        assert scores[row].topk(10).indices.tolist() == best
        assert (scores[row] > -torch.inf).sum() == 10
        assert scores[row, best].tolist() == pytest.approx([answer.score for answer in answers], abs=1e-5)


def test_two_tokenizers_are_refused(tiny_idgenrec):
    config = tiny_idgenrec().config
    other = IDGenRecConfig.from_dict(config.to_dict())
    other.generator_config.vocab_size += 1
    with pytest.raises(ValueError, match="one tokenizer"):
        IDGenRecModel(other)


def test_exact_scores_equal_a_plain_forward(tiny_idgenrec, id_processor):
    model, processor = tiny_idgenrec("t5"), id_processor("item", True)
    tokens = processor._tokens
    inputs = processor.inputs([[tokens[3], tokens[10]]], model)
    shown = Trie.build([tokens[row] for row in (5, 7, 9)], processor.writer.eos)
    scores = score_all(model.recommender, inputs, shown, length_penalty=0.0)[0].tolist()
    assert scores == pytest.approx([teacher_forced(model, processor, [3, 10], row) for row in (5, 7, 9)], abs=1e-4)
