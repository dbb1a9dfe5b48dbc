import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, set_seed

from genrec_hub.batches import LengthBucketSampler, TrainingSequences, collate
from genrec_hub.configuration_sasrec import SASRecConfig
from genrec_hub.domain import Cases, Sequences
from genrec_hub.metrics import hit_rate, target_ranks
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.timing import Clock
from genrec_hub.training import SPENT, TENTHS, NextItemTrainer, SASRecTrainer, SETRecTrainer, run, training_arguments

V = 48


@pytest.fixture(scope="module")
def domain(synthetic_domain):
    return synthetic_domain(40, V, 0)


@pytest.fixture(scope="module")
def split(domain):
    return domain.leave_one_out()


def features(size=V, seed=0):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.nn.functional.normalize(torch.randn(size, 16, generator=generator), dim=-1)
    has_cf = torch.arange(size) % 3 > 0
    return {"semantic": semantic, "cf": torch.randn(size, 6, generator=generator) * has_cf[:, None], "has_cf": has_cf}


def arguments(output, **more):
    settings = {"epochs": 2, "batch": 8, "rate": 3e-3, "steps_per_epoch": 5, "seed": 3, "eval_steps": 3, "save_steps": 3}
    return training_arguments(output, **{**settings, "disable_tqdm": True, "logging_strategy": "no", **more})


def bare(output, **more):
    """Neither validation nor checkpoints."""
    return arguments(output, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **more)


@pytest.fixture
def trainer(split, tiny_setrec, tmp_path):
    """("sasrec" or "setrec", folder, arguments, options) -> a trainer of a fresh tiny model, the same one every time."""

    def make(kind, folder="run", args=None, callbacks=None, sequences=split.training, validation=split.validation, **options):
        args = args or arguments(tmp_path / folder)
        set_seed(args.seed)
        shared = {"sequences": sequences, "validation": validation, "catalog_size": V, "negatives": 10, "callbacks": callbacks}
        if kind == "sasrec":
            config = SASRecConfig(**{"num_items": V, "hidden_size": 16, "max_length": 8, "dropout": 0.2, **options.pop("config", {})})
            return SASRecTrainer(SASRecModel(config), args, max_items=8, **{**shared, **options})
        model = tiny_setrec(**{"cf_size": 6, "dropout": 0.2, "max_items": 8, **options.pop("config", {})})
        if kind == "cold":
            shared |= {"cold_share": 0.4}
        return SETRecTrainer(model, args, features=features(), **{**shared, **options})

    return make


# Interrupted and resumed


class PowerCut(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["sasrec", "setrec", "cold"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(trainer, kind):
    whole = trainer(kind, "whole")
    run(whole, resume=False)
    cut = trainer(kind, "cut", callbacks=[PowerCut(8)])
    with pytest.raises(KeyboardInterrupt):
        run(cut, resume=True)  # nothing to resume yet: starts anew
    assert cut.state.global_step == 8
    again = trainer(kind, "cut")
    again.model.apply(lambda module: [p.data.zero_() for p in module.parameters(recurse=False)])  # all of it comes from the checkpoint
    run(again, resume=True)
    assert again.state.global_step == whole.state.global_step == 10
    assert again.state.best_metric == whole.state.best_metric
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    steps = [[entry["step"] for entry in t.state.log_history if "eval_ndcg@10" in entry] for t in (whole, again)]
    assert steps[0] == steps[1] == [3, 6, 9, 10]


def test_a_new_run_knows_nothing_of_an_earlier_one_in_its_folder(trainer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(trainer("sasrec", "folder", callbacks=[PowerCut(8)]), resume=False)
    with pytest.raises(KeyboardInterrupt):
        run(trainer("sasrec", "folder", callbacks=[PowerCut(4)]), resume=False)
    assert [path.name for path in (tmp_path / "folder").glob("checkpoint-*")] == ["checkpoint-3"]
    assert training_arguments(tmp_path, epochs=1, batch=8, rate=1e-3, steps_per_epoch=1, seed=0).warmup_steps == 0  # one step counts


def test_the_clock_goes_on_where_an_interrupted_run_stopped(trainer, tmp_path):
    """What came after the last checkpoint is lost and done again, and its time with it."""
    first, second = Clock(), Clock()
    first.set({"seconds": 1000.0, "cpu_seconds": 500.0})
    with pytest.raises(KeyboardInterrupt):
        run(trainer("sasrec", "cut", callbacks=[PowerCut(8)]), True, first)
    kept = json.loads((tmp_path / "cut" / "checkpoint-6" / SPENT).read_text())
    assert 1000 <= kept["seconds"] < 1200
    assert 500 <= kept["cpu_seconds"] < 700
    first.set({"seconds": 5000.0})
    run(trainer("sasrec", "cut"), True, second)
    assert kept["seconds"] <= second.spent()["seconds"] < 1400
    assert kept["cpu_seconds"] <= second.spent()["cpu_seconds"] < 900


def test_the_best_checkpoint_is_kept(trainer):
    trained = trainer("sasrec")
    run(trained, resume=False)
    seen = [entry["eval_ndcg@10"] for entry in trained.state.log_history if "eval_ndcg@10" in entry]
    for training in (True, False):  # whatever the mode, validation is without dropout
        trained.model.train(training)
        assert trained.rank_validation()["ndcg@10"] == pytest.approx(max(seen), abs=1e-9)
        assert trained.model.training is training


def test_repeats_are_no_validation_targets(trainer):
    """Seen items are excluded, so a target that was seen says nothing; where all are, they have to do."""
    histories, targets = [np.array([1, 2]), np.array([3, 4]), np.array([5])], [np.array([2]), np.array([9]), np.array([7])]
    cases = Cases(np.arange(3), Sequences.of(histories), Sequences.of(targets))
    assert trainer("sasrec", validation=cases).validation.users.tolist() == [1, 2]
    assert trainer("sasrec", validation=cases.select(np.array([0]))).validation.users.tolist() == [0]


def test_validation_judges_the_blend_that_is_released(trainer, tmp_path):
    """`keep` of the untrained weights, the rest learnt; the training itself does not notice."""
    made = []
    for name, keep in (("plain", 0.0), ("blending", 0.25)):
        one = trainer("setrec", name, arguments(tmp_path / name, load_best_model_at_end=False), keep=keep)
        start = {name: values.clone() for name, values in one.model.state_dict().items()}
        run(one, resume=False)
        made.append(one)
    plain, blending = made
    learnt = plain.model.state_dict()
    assert any(not torch.equal(values, start[name]) for name, values in learnt.items())
    for name, values in blending.model.state_dict().items():
        assert torch.equal(values, learnt[name]), name
    judged = [entry["eval_ndcg@10"] for entry in blending.state.log_history if "eval_ndcg@10" in entry]
    blend = {name: 0.75 * values + 0.25 * start[name] for name, values in learnt.items()}
    blending.settle()
    for name, values in blending.model.state_dict().items():
        assert torch.allclose(values, blend[name], atol=1e-7), name
    plain.model.load_state_dict(blending.model.state_dict())
    assert plain.rank_validation() == blending.rank_validation()
    assert blending.rank_validation()["ndcg@10"] == judged[-1]


# Candidates


def test_candidates_are_a_function_of_seed_and_step(trainer):
    one, other = trainer("sasrec"), trainer("setrec")
    labels = torch.tensor([[-100, 3, 9], [1, 3, 40]])
    torch.manual_seed(1)
    first = one.draw_candidates(labels)
    assert {3, 9, 1, 40} <= set(first.tolist())
    assert len(first) <= 14
    assert first.tolist() == sorted(set(first.tolist()))
    torch.manual_seed(2)
    assert torch.equal(one.draw_candidates(labels), first)
    assert torch.equal(other.draw_candidates(labels), first)
    one.state.global_step = 1
    assert not torch.equal(one.draw_candidates(labels), first)
    one.negatives = 0
    assert torch.equal(one.draw_candidates(labels), torch.arange(V))


def test_negatives_come_from_training(trainer, split):
    """Never from items that only validation or test know."""
    few = Sequences.of([[0, 1, 2], [2, 3], [2, 5]])
    drawn = Counter()
    for popular in (False, True):
        made = trainer("sasrec", sequences=few, popular_negatives=popular, negatives=200)
        own = made.draw_candidates(torch.tensor([[0]]))
        assert set(own.tolist()) == {0, 1, 2, 3, 5}
        drawn[popular] = float((made.pools[0] == 2).float().mean())
    assert drawn[False] == pytest.approx(1 / 5)
    assert drawn[True] == pytest.approx(3 / 7)


def test_a_share_of_the_items_is_cold_in_every_step(trainer, monkeypatch):
    """Drawn by seed and step; in history and candidates alike; validation sees what is known."""
    made, seen, look = trainer("cold"), [], SETRecTrainer.model_inputs
    monkeypatch.setattr(SETRecTrainer, "model_inputs", lambda *given: seen.append(look(*given)) or seen[-1])
    batch = {"items": torch.arange(12).view(2, 6), "labels": torch.arange(12).view(2, 6)}
    for step in (0, 0, 1):
        made.state.global_step = step
        made.training_step(made.model, dict(batch), torch.tensor(12))
    first, again, other = (given["candidates"]["has_cf"] for given in seen)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    known = features()
    assert torch.equal(made.validation_features["has_cf"], known["has_cf"])
    cold = known["has_cf"] & ~made.features["has_cf"]
    assert 0.2 * V < int(cold.sum()) < 0.6 * V
    assert not made.features["cf"][cold].any()
    assert torch.equal(made.features["cf"][~cold], known["cf"][~cold])
    assert torch.equal(made.features["semantic"], known["semantic"])
    assert torch.equal(seen[2]["has_cf"], made.features["has_cf"][batch["items"][:, :-1]])


def test_a_step_contrasts_within_its_domain(trainer):
    domains = np.array([0] * 20 + [1] * 28)
    sequences = Sequences.of([[n, n + 1, n + 2] for n in range(0, 18)] + [[20 + n, 21 + n, 22 + n] for n in range(26)])
    made = trainer("setrec", sequences=sequences, domains=domains, negatives=30)
    low, high = (made.draw_candidates(torch.tensor([[-100, first, first + 1]])) for first in (4, 30))
    assert low.max() < 20
    assert high.min() >= 20
    for batch in made.get_train_dataloader():
        assert len(set(domains[batch["items"][batch["items"] >= 0]])) == 1


# Order of the sequences


def test_the_sampler_of_one_domain():
    lengths = np.random.default_rng(0).integers(2, 30, 203)
    sampler = LengthBucketSampler(lengths, 8, seed=5, window=4)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert sorted(first) == list(range(203))
    assert len(sampler) == 203
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(203))
    assert second != first
    assert list(LengthBucketSampler(lengths, 8, seed=6, window=4)) != first
    resumed = LengthBucketSampler(lengths, 8, seed=5, window=4)
    resumed.set_epoch(1)
    assert list(resumed) == second

    def spread(order):
        return np.mean([np.ptp(lengths[order[at : at + 8]]) for at in range(0, 200, 8)])

    assert spread(first) < 0.4 * spread(np.random.default_rng(1).permutation(203))


def test_the_sampler_of_several_domains():
    domains = np.array([0] * 50 + [1] * 21 + [2] * 90)
    lengths = np.random.default_rng(0).integers(2, 30, 161)
    sampler = LengthBucketSampler(lengths, 4, seed=5, domains=domains, quota=40, window=3)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 40 + 20 + 40
        assert len(set(order)) == len(order)
        assert all(len(set(domains[order[at : at + 4]])) == 1 for at in range(0, len(order), 4))
        assert Counter(domains[order]) == {0: 40, 1: 20, 2: 40}
        epochs.append(set(order))
    assert epochs[0] != epochs[1]


def test_sequences_are_cut_and_short_ones_left_out():
    data = TrainingSequences(Sequences.of([[1, 2, 3, 4, 5], [6], [], [7, 8]]), most=3)
    assert [data[row].tolist() for row in range(len(data))] == [[3, 4, 5], [7, 8]]
    assert data.lengths.tolist() == [3, 2]
    batch = collate([data[0], data[1]])
    assert batch["items"].tolist() == [[3, 4, 5], [-1, 7, 8]]
    assert batch["labels"].tolist() == [[3, 4, 5], [-100, 7, 8]]
    assert collate([data[0], data[1]], opening=False)["labels"].tolist() == [[-100, 4, 5], [-100, -100, 8]]


# One step


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def stepped(trainer, kind, batch, accumulation, sequences, **config):
    gradients = Gradients()
    args = bare("unused", batch=batch, gradient_accumulation_steps=accumulation, max_steps=1, max_grad_norm=0.0)
    config = {"dropout": 0.0, **config}
    made = trainer(kind, args=args, callbacks=[gradients], sequences=sequences, validation=None, negatives=0, config=config)
    made.train()
    [first] = gradients.seen
    return first, made.model


UNEVEN = Sequences.of([[1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19]])


@pytest.mark.parametrize("kind", ["sasrec", "setrec"])
def test_the_loss_is_the_mean_over_all_targets(trainer, kind, tmp_path, monkeypatch):
    """Two accumulated batches give the gradient of one of twice the size, sequences of every length in them."""
    monkeypatch.chdir(tmp_path)
    more = {"alpha": 0.0} if kind == "setrec" else {}
    one, _ = stepped(trainer, kind, 4, 1, UNEVEN, **more)
    two, _ = stepped(trainer, kind, 2, 2, UNEVEN, **more)
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() <= 1e-5 * max(1.0, float(one[name].abs().max())), name
    by_hand = trainer(kind, args=bare("unused"), negatives=0, validation=None, sequences=UNEVEN, config={"dropout": 0.0, **more})
    losses, targets = [], 0
    for user in range(4):
        batch = collate([UNEVEN[user]], opening=kind == "setrec")
        count = len(UNEVEN[user]) - (kind == "sasrec")
        losses.append(by_hand.compute_loss(by_hand.model, batch) * count)
        targets += count
    (sum(losses) / targets).backward()
    for name, p in by_hand.model.named_parameters():
        if name in one:
            assert (one[name] - p.grad).abs().max() <= 1e-5 * max(1.0, float(p.grad.abs().max())), name


def test_the_whole_loss_of_equal_lengths(trainer, tmp_path, monkeypatch):
    """With the reconstruction loss, whose mean is over history items."""
    monkeypatch.chdir(tmp_path)
    even = Sequences.of([[n, n + 1, n + 5, n + 9] for n in range(4)])
    one, _ = stepped(trainer, "setrec", 4, 1, even)
    two, _ = stepped(trainer, "setrec", 2, 2, even)
    for name in one:
        assert (one[name] - two[name]).abs().max() <= 1e-5 * max(1.0, float(one[name].abs().max())), name
    assert one["semantic.decoder.0.weight"].any()


@pytest.mark.parametrize("kind", ["sasrec", "setrec"])
def test_long_histories_in_parts_have_the_gradient_of_the_whole(trainer, kind, monkeypatch, split):
    """A batch beyond the budget goes through in parts, against the candidates of the whole batch."""
    gradients = []
    for positions in (10**6, 20):
        monkeypatch.setattr("genrec_hub.training.NextItemTrainer.positions", positions)
        subject = trainer(kind, config={"dropout": 0.0, **({"alpha": 0.0} if kind == "setrec" else {})})
        subject.create_optimizer()
        batch = subject.data_collator([split.training[user][-8:] for user in range(9)])
        count = (batch["labels"] >= 0).sum()
        loss = subject.training_step(subject.model, batch, count)
        gradients.append((loss, {name: p.grad.clone() for name, p in subject.model.named_parameters() if p.grad is not None}))
    (whole, expected), (parts, found) = gradients
    assert torch.allclose(whole, parts, atol=1e-6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(gradient, found[name], atol=1e-6), name


def test_packed_inputs_answer_every_prefix(trainer):
    made = trainer("setrec", config={"dropout": 0.0}, negatives=0)
    items = collate([np.array([3, 7, 1, 9]), np.array([2, 5])])["items"]
    inputs = made.model_inputs(items, torch.arange(V))
    output = made.model.eval()(**inputs)
    assert output.tokens.shape == (2, 4, 4, 32)
    assert output.asked.tolist() == [[True] * 4, [False, False, True, True]]
    histories = [[], [3], [3, 7], [3, 7, 1], [], [2]]
    alone = made.model.recommend_tokens([np.array(own, np.int64) for own in histories], features())
    assert torch.allclose(output.tokens[output.asked], alone, atol=1e-5)


# Choices on validation data


def test_beta_is_the_argmax_on_validation(trainer):
    made = trainer("setrec")
    curve = made.choose_beta((0.0, 0.25, 0.5, 1.0))
    assert list(curve) == [0.0, 0.25, 0.5, 1.0]
    assert made.model.config.beta == max(curve, key=curve.get)
    assert len(set(curve.values())) > 1
    for beta, value in curve.items():
        made.model.config.beta = beta
        assert made.rank_validation()["ndcg@10"] == pytest.approx(value, abs=1e-9)
    assert trainer("setrec", config={"cf_size": 0}).choose_beta() == {}
    assert trainer("setrec", validation=None).choose_beta() == {}


def test_where_nothing_is_hit_nothing_is_chosen(trainer, monkeypatch):
    made = trainer("setrec", config={"cold_score": 0.5})
    monkeypatch.setattr(made, "_validated", lambda betas, cold_scores: {(b, c): 0.0 for b in betas for c in cold_scores})
    before = made.model.config.beta
    made.choose_beta()
    made.choose_cold_score()
    assert (made.model.config.beta, made.model.config.cold_score) == (before, 0.5)


def test_validation_chooses_how_much_of_the_start_is_kept(trainer, tmp_path):
    made = trainer("setrec", "choosing", arguments(tmp_path / "choosing", load_best_model_at_end=False), keep=0.5)
    start = {name: values.clone() for name, values in made.model.state_dict().items()}
    run(made, resume=False)
    learnt = {name: values.clone() for name, values in made.model.state_dict().items()}
    curve = made.choose_keep((0.0, 0.5, 1.0))
    assert made.keep == max(curve, key=curve.get)
    assert len(set(curve.values())) > 1
    for name, values in made.model.state_dict().items():
        assert torch.equal(values, learnt[name]), name  # nothing is blended before `settle`
    for share, best in curve.items():
        made.model.load_state_dict({name: values.lerp(start[name], share) for name, values in learnt.items()})
        made.keep = 0.0
        assert max(made.choose_beta(TENTHS).values()) == pytest.approx(best, abs=1e-9)
    assert trainer("setrec", validation=None, keep=0.5).choose_keep() == {}


@pytest.mark.parametrize("grounding", ["token", "latent"])
def test_items_without_interactions_get_what_the_others_can_spare(trainer, grounding):
    made = trainer("setrec", config={"grounding": grounding})
    curve = made.choose_cold_score(0.1, (0.2, 1.0, 9.0, 99.0), (0.0, 0.3, 1.0))
    spared = [score for score, value in curve.items() if value >= 0.9 * max(curve.values())]
    assert made.model.config.cold_score == max(spared)
    assert len(set(curve.values())) > 1
    for score, value in curve.items():
        made.model.config.cold_score = score
        found = []
        for made.model.config.beta in (0.0, 0.3, 1.0):
            found.append(made.rank_validation()["ndcg@10"])
        assert max(found) == pytest.approx(value, abs=1e-9)
    assert trainer("setrec", config={"cf_size": 0}).choose_cold_score() == {}


def test_beta_knows_nothing_of_the_test_cases(domain, trainer):
    """Other test targets, the same curve; other validation targets, another one."""
    curves = []
    for changed in (None, -1, -2):
        items = domain.sequences.items.copy()
        if changed is not None:
            last = domain.sequences.offsets[1:] + changed
            items[last] = (items[last] + 7) % V
        split = replace_items(domain, items).leave_one_out()
        curves.append(trainer("setrec", sequences=split.training, validation=split.validation).choose_beta())
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def replace_items(domain, items):
    return type(domain)(domain.catalog, domain.users, replace(domain.sequences, items=items), domain.times)


def test_validation_is_full_ranking_without_the_seen(trainer, split):
    made = trainer("sasrec", validation=split.validation)
    made.model.eval()
    hits, gains = [], []
    for history, [target] in zip(split.validation.histories, split.validation.targets, strict=True):
        if target in history:
            continue
        [scores] = made.model.score([history])
        scores[torch.tensor(history)] = -torch.inf
        rank = 1 + int((scores >= scores[target]).sum()) - 1
        hits.append(rank <= 10)
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0)
    assert len(hits) == 40
    assert made.rank_validation() == pytest.approx({"hr@10": np.mean(hits), "ndcg@10": np.mean(gains)})


# Learning


def test_the_autoencoder_learns(trainer):
    """methods.md, SETRec acceptance test 6."""
    sequences = Sequences.of([np.random.default_rng(n).permutation(V)[:8] for n in range(30)])
    args = bare("unused", epochs=25, batch=30, rate=1e-2, steps_per_epoch=1)
    made = trainer("setrec", args=args, sequences=sequences, validation=None, config={"alpha": 30.0, "dropout": 0.0})
    real = features()["semantic"]

    def error():
        with torch.no_grad():
            return float((made.model.semantic.reconstruct(made.model.semantic(real)) - real).square().mean())

    before = error()
    made.train()
    assert error() < 0.5 * before
    assert error() < float(real.var(0).mean()) * 0.9


@pytest.mark.parametrize("kind", ["sasrec", "setrec"])
def test_fifty_users_are_learnt_by_heart(kind, tiny_setrec, tmp_path):
    """methods.md, SETRec acceptance test 10."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(100)[:5] for _ in range(50)]
    args = bare(tmp_path, epochs=120 if kind == "setrec" else 60, batch=50, rate=5e-3 if kind == "setrec" else 1e-2, steps_per_epoch=1)
    cases = Cases(np.arange(50), Sequences.of([s[:-1] for s in sequences]), Sequences.of([s[-1:] for s in sequences]))
    shared = {"sequences": Sequences.of(sequences), "validation": cases, "catalog_size": 100, "negatives": 0}
    set_seed(0)
    if kind == "sasrec":
        config = SASRecConfig(num_items=100, hidden_size=32, max_length=8, dropout=0.0)
        made: NextItemTrainer = SASRecTrainer(SASRecModel(config), args, **shared)
    else:
        made = SETRecTrainer(tiny_setrec(cf_size=6), args, features=features(100), **shared)

    def recall():
        ranks = target_ranks(made.scores(list(cases.histories)), list(cases.targets), list(cases.histories))
        return float(hit_rate(ranks, 5).mean())

    made.model.eval()
    assert recall() < 0.3
    made.train()
    made.model.eval()
    assert recall() >= 0.96


def test_two_processes_divide_by_all_their_targets():
    """The Trainer averages over processes, so a loss that is divided by all targets is multiplied by their number."""
    seen = {}

    def model(**inputs):
        seen.update(inputs)
        return SimpleNamespace(loss=torch.tensor(3.0))

    fake = SimpleNamespace(draw_candidates=lambda labels: torch.arange(5), model_inputs=lambda *_: {}, args=SimpleNamespace(world_size=2))
    batch = {"items": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]])}
    assert float(NextItemTrainer.compute_loss(fake, model, batch, num_items_in_batch=8)) == 6.0
    assert seen["num_items_in_batch"] == 8
    assert float(NextItemTrainer.compute_loss(fake, model, batch)) == 3.0
