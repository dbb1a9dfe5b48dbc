"""Evaluation: a table worked out by hand, every baseline against a loop, and the promises of the result's contract."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec_hub import metrics
from genrec_hub.baselines import (
    ItemKNN,
    Popularity,
    Ranker,
    RepeatLast,
    SASRecRanker,
    TextKNN,
    TextNeighbours,
    baseline_rankers,
)
from genrec_hub.catalog import Catalog, Item
from genrec_hub.checkpoint import refuse_other_protocol
from genrec_hub.configuration_sasrec import SASRecConfig
from genrec_hub.domain import Cases, Domain, Sequences, Split
from genrec_hub.evaluation import evaluate
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.pipeline import PRETRAINED
from genrec_hub.semantic import centred

KEYS = [
    *(
        "protocol",
        "zero_shot",
        "exclude_seen",
        "repeat_targets",
        "users",
        "items",
        "seed",
        "metrics",
        "ci",
        "baselines",
        "groups",
    ),
    *("seconds", "model", "fingerprint", "command"),
]
TEXT = [f"text-knn-{how}" for how in ("last", "mean", "max", "recent", "soft")]


class Fixed:
    """Gives every history the same scores, and keeps what it was asked."""

    def __init__(self, line: Sequence[float]) -> None:
        self.line, self.asked = torch.tensor(line), []

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        self.asked += [tuple(int(item) for item in history) for history in histories]
        return self.line.expand(len(histories), -1)


class Whole:
    """A model that makes its ranker, and keeps what it was given."""

    name = "whole"

    def __init__(self, size: int) -> None:
        self.size, self.given = size, None

    def ranker(self, domain: Domain, split: Split | None, zero_shot: bool, exclude_seen: bool) -> Ranker:
        self.given = (domain, split, zero_shot)
        return Fixed([0.0] * self.size)


def make_domain(sequences: Sequence[Sequence[int]], size: int) -> Domain:
    catalog = Catalog(Item(f"i{row}", title=f"thing {row}") for row in range(size))
    return Domain(catalog, [f"u{user}" for user in range(len(sequences))], Sequences.of(sequences))


def unit(size: int, width: int = 6, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def random_domain() -> Domain:
    rng = np.random.default_rng(3)
    return make_domain([rng.permutation(30)[: rng.integers(3, 12)].tolist() for _ in range(40)], 30)


def test_five_items_by_hand() -> None:
    # training: [0, 1], [1], [0]; histories: [0, 1, 2], [1, 2], [0, 1]; targets: 3, 0, 4; items 2, 3, 4 are cold.
    domain = make_domain([[0, 1, 2, 3], [1, 2, 0], [0, 1, 4]], 5)
    result = evaluate(Fixed([0.5, 0.4, 0.3, 0.2, 0.2]), domain, vectors=np.eye(5, dtype=np.float32), bootstrap=50)
    # user 0: candidates 3, 4, tied at 0.2: the target loses, rank 2. user 1: candidates 0, 3, 4: rank 1.
    # user 2: candidates 2 (0.3), 3 and 4 (0.2, tied): rank 3.
    assert result["users"] == 3
    assert result["metrics"] == pytest.approx(
        {
            "HR@5": 1.0,
            "HR@10": 1.0,
            "NDCG@5": (1 / math.log2(3) + 1 + 1 / 2) / 3,
            "NDCG@10": (1 / math.log2(3) + 1 + 1 / 2) / 3,
            "MRR": (1 / 2 + 1 + 1 / 3) / 3,
            "coverage@10": 4 / 5,  # item 1 is in every history
            "diversity@10": 1.0,  # orthogonal vectors
        }
    )
    groups = result["groups"]
    assert set(groups) == {"warm", "cold", "train count 1-5", "warm among warm", "cold among cold"}
    assert (groups["warm"]["users"], groups["cold"]["users"]) == (1, 2)
    assert groups["warm"]["MRR"] == 1.0
    assert groups["cold"]["MRR"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert groups["train count 1-5"] == groups["warm"]
    # Among cold items alone: user 0 asks 3 of 3, 4 (tied): rank 2; user 2 asks 4 of 2, 3, 4: rank 3. Warm: user 1 has one candidate.
    assert groups["cold among cold"]["MRR"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert groups["cold among cold"]["users"] == 2
    assert groups["cold among cold"]["coverage@10"] == 3 / 5
    assert (groups["warm among warm"]["MRR"], groups["warm among warm"]["coverage@10"]) == (1.0, 1 / 5)


def test_lists_leave_out_what_was_seen_and_what_has_no_score() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    domain = make_domain([[0, 1, 2]], 5)  # history [0, 1], target 2
    result = evaluate(Fixed([9.0, 9.0, math.nan, 1.0, -math.inf]), domain, vectors=vectors, bootstrap=10)
    assert result["metrics"]["MRR"] == pytest.approx(1 / 3)  # NaN is no better than -inf: last of the three candidates
    assert result["metrics"]["coverage@10"] == 1 / 5
    assert result["metrics"]["diversity@10"] is None
    seen = evaluate(Fixed([9.0, 9.0, math.nan, 1.0, -math.inf]), domain, vectors=vectors, exclude_seen=False, bootstrap=10)
    assert seen["metrics"]["MRR"] == pytest.approx(1 / 5)
    assert seen["metrics"]["coverage@10"] == 3 / 5
    assert seen["metrics"]["diversity@10"] == pytest.approx(0.0)


def test_repeat_targets_are_dropped_only_when_seen_is_excluded() -> None:
    domain = make_domain([[0, 1, 0], [0, 1, 2], [3, 3, 3]], 5)
    line, vectors = [5.0, 4.0, 3.0, 2.0, 1.0], unit(5)
    without = evaluate(Fixed(line), domain, vectors=vectors, bootstrap=10)
    assert (without["users"], without["repeat_targets"]) == (1, 2)
    assert without["metrics"]["MRR"] == 1.0
    seen = evaluate(Fixed(line), domain, vectors=vectors, exclude_seen=False, baselines=True, bootstrap=10)
    assert (seen["users"], seen["repeat_targets"]) == (3, 2)
    assert seen["metrics"]["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 4) / 3)
    assert seen["baselines"]["repeat-last"]["MRR"] > 0
    assert "repeat-last" not in evaluate(Fixed(line), domain, vectors=vectors, baselines=True, bootstrap=10)["baselines"]


def test_nobody_left_gives_nulls_and_no_case_a_sentence() -> None:
    result = evaluate(Fixed([1.0, 2.0]), make_domain([[0, 1, 0]], 2), vectors=unit(2), baselines=True, bootstrap=10)
    assert (result["users"], result["repeat_targets"], result["groups"]) == (0, 1, {})
    assert result["metrics"]["HR@10"] is None
    assert result["ci"]["HR@10"] == [None, None]
    json.dumps(result, allow_nan=False)
    with pytest.raises(ValueError, match="at least 3 interactions"):
        evaluate(Fixed([1.0, 2.0]), make_domain([[0, 1]], 2), vectors=unit(2))


def test_several_targets_give_recall_and_each_target_its_group() -> None:
    domain = make_domain([[0, 1, 2, 3, 3, 0]], 12)
    domain.given = np.array([0, 0, 2, 2, 2, 2])  # targets 2, 3 (twice) and 0, which was seen
    line = [float(score) for score in range(12, 0, -1)]
    result = evaluate(Fixed(line), domain, protocol="given", vectors=unit(12), bootstrap=10)
    assert result["metrics"]["Recall@5"] == 1.0
    assert result["metrics"]["NDCG@5"] == pytest.approx(1.0)
    assert result["users"] == 1
    domain.given = np.array([0, 0, 2, 2, 2, 2])
    seen = evaluate(Fixed(line[::-1]), domain, protocol="given", vectors=unit(12), exclude_seen=False, bootstrap=10)
    # scores upwards: item 0 has rank 12, 2 has 10, 3 has 9
    assert seen["metrics"]["Recall@10"] == pytest.approx(2 / 3)
    assert seen["metrics"]["MRR"] == pytest.approx(1 / 9)
    assert seen["groups"]["warm"]["Recall@10"] == 0.0
    assert seen["groups"]["warm"]["MRR"] == pytest.approx(1 / 12)
    assert seen["groups"]["cold"]["Recall@10"] == 1.0
    assert "HR@10" not in seen["groups"]["warm"]


def test_group_ranks_belong_to_their_targets(random_domain: Domain) -> None:
    rng = np.random.default_rng(0)
    histories = [rng.choice(15, 4, replace=False) for _ in range(25)]
    targets = [15 + rng.choice(15, 3, replace=False) for _ in range(25)]
    cases = Cases(np.arange(25), Sequences.of(histories), Sequences.of(targets))
    split = Split(Sequences.of([[15, 16, 17, 18, 19, 20, 21]]), cases, cases)
    line = rng.integers(0, 6, 30).astype(float)  # many ties
    result = evaluate(Fixed(line.tolist()), random_domain, split=split, vectors=unit(30), bootstrap=10)
    hits = {"warm": [], "cold": []}
    for history, own in zip(histories, targets, strict=True):
        for group, inside in (("warm", own <= 21), ("cold", own > 21)):
            if inside.any():
                order = sorted(own.tolist(), key=lambda item: -line[item])  # stable: of two tied targets the later one loses
                ranks = {}
                for item in own.tolist():
                    others = [j for j in range(30) if j not in history and j not in own]
                    ranks[item] = 1 + order.index(item) + sum(line[j] >= line[item] for j in others)
                hits[group].append(np.mean([ranks[item] <= 10 for item in own[inside].tolist()]))
    for group, values in hits.items():
        assert result["groups"][group]["Recall@10"] == pytest.approx(np.mean(values))
        assert result["groups"][group]["users"] == len(values)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_room_by_itself_equals_a_smaller_catalogue(exclude_seen: bool) -> None:
    rng = np.random.default_rng(1)
    histories = [rng.choice(30, 4, replace=False) for _ in range(25)]
    targets = [rng.permutation(np.setdiff1d(np.arange(30), history))[:3] for history in histories]
    cases = Cases(np.arange(25), Sequences.of(histories), Sequences.of(targets))
    split = Split(Sequences.of([list(range(12))]), cases, cases)
    line, domain = rng.integers(0, 6, 30).astype(float), make_domain([list(range(30))], 30)
    ours, other = Fixed(line.tolist()), Fixed((-line).tolist())
    result = evaluate(ours, domain, split=split, sasrec=other, vectors=unit(30), exclude_seen=exclude_seen, bootstrap=10)
    for room, inside in (("warm", np.arange(30) < 12), ("cold", np.arange(30) >= 12)):
        place, asked = np.cumsum(inside) - 1, [own for own in range(25) if inside[targets[own]].any()]
        for ranker, name in ((ours, "model"), (other, "sasrec")):
            lines = ranker.line[torch.from_numpy(inside)].expand(len(asked), -1)
            small = [place[targets[own][inside[targets[own]]]] for own in asked]
            shut = [place[histories[own][inside[histories[own]]]] for own in asked] if exclude_seen else None
            ranks = metrics.target_ranks(lines, small, shut)
            group = result["groups"][f"{room} among {room}"]
            shown = group if name == "model" else group["baselines"][name]
            assert shown["Recall@10"] == pytest.approx(metrics.hit_rate(ranks, 10).mean())
            assert shown["NDCG@5"] == pytest.approx(metrics.ndcg(ranks, 5).mean())
            assert group["users"] == len(asked)


def test_sample_is_seeded_and_the_same_for_every_row(random_domain: Domain) -> None:
    ours, other = Fixed([0.0] * 30), Fixed([0.0] * 30)
    first = evaluate(ours, random_domain, max_users=10, seed=5, sasrec=other, vectors=unit(30), baselines=True, bootstrap=10)
    assert first["users"] == 10
    assert ours.asked == other.asked
    assert first["metrics"] == first["baselines"]["sasrec"]
    again, third = Fixed([0.0] * 30), Fixed([0.0] * 30)
    evaluate(again, random_domain, max_users=10, seed=5, vectors=unit(30), batch_size=3, bootstrap=10)
    evaluate(third, random_domain, max_users=10, seed=6, vectors=unit(30), bootstrap=10)
    assert sorted(again.asked) == sorted(ours.asked) != sorted(third.asked)


def test_batches_do_not_change_the_numbers(random_domain: Domain) -> None:
    one, many = (evaluate(None, random_domain, vectors=unit(30), batch_size=size) for size in (1, 64))
    for name, table in one["baselines"].items():
        assert table == pytest.approx(many["baselines"][name]), name


def test_the_result_has_the_keys_of_the_design_and_is_json(random_domain: Domain) -> None:
    result = evaluate(Fixed([1.0] * 30), random_domain, vectors=unit(30), baselines=True, command="genrec evaluate")
    assert list(result) == KEYS
    names = ["HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    assert list(result["metrics"]) == [*names, "coverage@10", "diversity@10"]
    assert list(result["baselines"]) == ["popularity", "item-knn", *TEXT]
    assert all(list(table) == list(result["metrics"]) for table in result["baselines"].values())
    assert list(result["ci"]) == names
    assert all(low <= result["metrics"][name] <= high for name, (low, high) in result["ci"].items())
    assert result["fingerprint"] == random_domain.catalog.fingerprint
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    alone = evaluate(None, random_domain, vectors=unit(30))
    assert list(alone) == KEYS
    assert (alone["metrics"], alone["ci"], alone["model"]) == ({}, {}, None)
    assert all(list(group["baselines"]) == list(alone["baselines"]) for group in alone["groups"].values())
    assert alone["baselines"] == result["baselines"]


def test_zero_shot_hands_over_the_catalogue_and_nothing_else(random_domain: Domain) -> None:
    model = Whole(30)
    result = evaluate(model, random_domain, zero_shot=True, baselines=True, vectors=unit(30), bootstrap=10)
    domain, split, zero_shot = model.given
    assert (len(domain), len(domain.sequences.items), split, zero_shot) == (0, 0, None, True)
    assert domain.catalog is random_domain.catalog
    assert (result["zero_shot"], result["model"]) == (True, "whole")
    assert "item-knn" in result["baselines"]
    evaluate(model, random_domain, vectors=unit(30), bootstrap=10)
    assert model.given[0] is random_domain
    assert isinstance(model.given[1], Split)


def test_validation_stage_asks_the_item_before_the_last() -> None:
    model = Fixed([0.0] * 5)
    evaluate(model, make_domain([[0, 1, 2, 3]], 5), stage="validation", vectors=unit(5), bootstrap=10)
    assert model.asked == [(0, 1)]


def test_a_model_of_another_kind_or_size_is_refused(random_domain: Domain) -> None:
    with pytest.raises(ValueError, match="neither scores"):
        evaluate(object(), random_domain, vectors=unit(30))
    with pytest.raises(ValueError, match="30 items"):
        evaluate(Fixed([1.0] * 29), random_domain, vectors=unit(30))


def test_text_baselines_equal_a_loop() -> None:
    vectors = centred(unit(20))
    histories = [np.array(h) for h in ([3], [4, 5, 4], [19, 0, 7, 8, 1, 2, 3])] + [np.zeros(0, np.int64)]
    text = TextNeighbours(vectors)
    for how in TextNeighbours.HOWS:
        got = TextKNN(text, how).scores(histories).numpy()
        for row, history in enumerate(histories):
            for item in range(20):
                cosines = [float(vectors[j] @ vectors[item]) for j in history]
                ago = range(len(history) - 1, -1, -1)
                want = {
                    "last": lambda c, a: c[-1],
                    "mean": lambda c, a: sum(c) / len(c),
                    "max": lambda c, a: max(c),
                    "recent": lambda c, a: sum(math.exp(-0.3 * g) * x for x, g in zip(c, a, strict=True)),
                    "soft": lambda c, a: math.log(sum(math.exp(8 * x - 0.3 * g) for x, g in zip(c, a, strict=True))),
                }[how]
                assert got[row, item] == pytest.approx(want(cosines, ago) if cosines else 0.0, abs=2e-5), how


def test_text_baselines_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [np.arange(9), np.array([3]), np.arange(12)[::-1].copy()]
    whole = {how: TextNeighbours(unit(20)).scores(histories, how) for how in TextNeighbours.HOWS}
    monkeypatch.setattr("genrec_hub.evaluation.CELLS", 40)  # two history items at a time
    text = TextNeighbours(unit(20))
    for how, scores in whole.items():
        torch.testing.assert_close(text.scores(histories, how), scores)


@pytest.mark.filterwarnings("error")
def test_item_knn_equals_a_loop() -> None:
    training = [[0, 1, 2], [1, 2, 1], [2, 3], [0, 3, 2, 1], [5], [4, 0]]
    histories = [np.array(h) for h in ([0, 1], [2, 2, 3], [6], [3, 0, 1, 2, 4])] + [np.zeros(0, np.int64)]
    count = np.bincount(np.concatenate(training), minlength=7)
    for window, last in ((50, 20), (2, 3)):
        got = ItemKNN(Sequences.of(training), 7, window, last).scores(histories)
        for row, history in enumerate(histories):
            for item in range(7):
                want = 0.0
                for j in history[-last:]:
                    both = sum(item in own[-window:] and j in own[-window:] for own in training)
                    want += both / math.sqrt(count[item] * count[j]) if both and item != j else 0.0
                assert float(got[row, item]) == pytest.approx(want, abs=1e-6)


def test_popularity_and_repeat_last() -> None:
    counts, history = np.array([5, 1, 0, 9]), [np.array([2, 1, 2])]
    assert Popularity(counts).scores(history).tolist() == [[5, 1, 0, 9]]
    assert RepeatLast(counts).scores(history)[0].argsort(descending=True).tolist() == [2, 1, 3, 0]


def test_popularity_counts_training_alone(random_domain: Domain) -> None:
    split = random_domain.split()
    scores = baseline_rankers(split, unit(30))["popularity"].scores([np.array([0])])
    assert scores[0].tolist() == np.bincount(split.training.items, minlength=30).tolist()


def test_sasrec_is_refused_for_another_catalogue(random_domain: Domain, tmp_path: Path) -> None:
    config = SASRecConfig(num_items=30, hidden_size=8, num_layers=1, num_heads=1, max_length=4, catalog_fingerprint="f" * 64)
    SASRecModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="belongs to the catalogue ffffffffffff"):
        evaluate(None, random_domain, sasrec=tmp_path, vectors=unit(30))
    config.catalog_fingerprint = random_domain.catalog.fingerprint
    SASRecModel(config).save_pretrained(tmp_path)
    result = evaluate(None, random_domain, sasrec=str(tmp_path), vectors=unit(30))
    assert result["baselines"]["sasrec"]["HR@10"] > 0
    with pytest.raises(FileNotFoundError, match="genrec train sasrec"):
        evaluate(None, random_domain, sasrec=tmp_path / "nowhere", vectors=unit(30))


def test_a_model_of_another_protocol_has_seen_the_targets(random_domain: Domain, tmp_path: Path) -> None:
    fingerprint = random_domain.catalog.fingerprint
    model = Fixed([1.0] * 30)
    model.checkpoint_folder = tmp_path
    SASRecModel(SASRecConfig(num_items=30, hidden_size=8, catalog_fingerprint=fingerprint)).save_pretrained(tmp_path)
    for report, refused in (
        ({"settings": {"protocol": "given"}, "data": {"fingerprint": fingerprint}}, True),
        ({"settings": {"protocol": "given"}}, True),
        ({"settings": {"protocol": "leave-one-out"}}, False),
        ({"settings": {"protocol": "given"}, "data": {"fingerprint": "f" * 64}}, False),  # it has seen nothing of this catalogue
        ({"settings": {"epochs": 2}}, False),
        ({"train": {}}, False),
    ):
        (tmp_path / "training.json").write_text(json.dumps(report))
        for own, more in ((model, {}), (None, {"sasrec": tmp_path}), (model, {"zero_shot": True})):
            if refused and not more.get("zero_shot"):
                with pytest.raises(ValueError, match="was trained under given, so that targets of leave-one-out may stand in its"):
                    evaluate(own, random_domain, vectors=unit(30), **more)
            else:
                assert evaluate(own, random_domain, vectors=unit(30), bootstrap=2, **more)["users"]


@pytest.mark.parametrize("name", ["setrec-foundation", "idgenrec-foundation"])
def test_a_foundation_is_asked_under_any_protocol(random_domain: Domain, name: str) -> None:
    for protocol in ("leave-one-out", "global-time", "given"):
        refuse_other_protocol(PRETRAINED / name, random_domain.catalog.fingerprint, protocol)


def test_sasrec_ranker_batch_equals_single() -> None:
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, num_layers=2, num_heads=2, max_length=4)).train()
    histories = [np.array(h, np.int64) for h in ([1, 2, 3, 4, 5, 6], [7], [], [0, 11], [3, 4, 5, 6])]
    ranker = SASRecRanker(model, batch_size=3)
    together = ranker.scores(histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row], ranker.scores([history])[0])
    torch.testing.assert_close(together[0], together[4])  # the last four items are all that is read
    assert not together[2].any()


def test_the_encoder_runs_only_where_it_is_needed(random_domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def encode(_: object, texts: Sequence[str], progress: object = None) -> np.ndarray:
        asked.extend(texts)
        return unit(len(texts))

    monkeypatch.setattr("genrec_hub.evaluation.TextEncoder.encode", encode)
    line = [float(item < 14) for item in range(30)]
    line = [score if score else -math.inf for score in line]
    result = evaluate(Fixed(line), random_domain, bootstrap=10)
    assert set(asked) <= set(random_domain.catalog.lines[:14])
    assert 0 < result["metrics"]["diversity@10"] < 2
    asked.clear()
    evaluate(None, random_domain)
    assert asked == random_domain.catalog.lines


def test_intervals_are_those_of_the_metrics(random_domain: Domain) -> None:
    line = np.linspace(0, 1, 30)
    result = evaluate(Fixed(line.tolist()), random_domain, vectors=unit(30), bootstrap=200, seed=7)
    cases = random_domain.split().test
    scores = torch.as_tensor(line, dtype=torch.float32).expand(len(cases), -1)
    parts = [[part[user] for user in range(len(cases))] for part in (cases.targets, cases.histories)]
    values = metrics.per_user(metrics.target_ranks(scores, *parts))
    for name, interval in result["ci"].items():
        assert interval == pytest.approx(metrics.bootstrap_interval(values[name], 200, 7))
