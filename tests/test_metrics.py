import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_hub.metrics import bootstrap_interval, coverage, diversity, hit_rate, ndcg, per_user, reciprocal_rank, target_ranks

score = st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, float("nan"), float("inf"), float("-inf")])


@st.composite
def users(draw):
    size = draw(st.integers(1, 9))
    line = draw(st.lists(score, min_size=size, max_size=size))
    targets = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
    excluded = draw(st.lists(st.integers(0, size - 1), max_size=6))
    return line, targets, excluded


def brute_ranks(line, targets, excluded):
    """Sort what may be ranked: best first, of equals the non-targets first; a target without a score stands last of all."""
    own = sorted(set(targets))
    pool = [item for item in range(len(line)) if item in own or item not in excluded]
    pool = [item for item in pool if not math.isnan(line[item])]
    pool.sort(key=lambda item: (-line[item], item in own))
    return sorted(pool.index(item) + 1 if item in pool else len(line) for item in own)


@given(st.lists(users(), min_size=1, max_size=4))
def test_ranks_equal_brute_force(drawn):
    for line, targets, excluded in drawn:
        got = target_ranks(torch.tensor([line]), [np.array(targets)], [np.array(excluded, np.int64)])
        assert got[0].tolist() == brute_ranks(line, targets, excluded)
        got = target_ranks(torch.tensor([line]), [np.array(targets)])
        assert got[0].tolist() == brute_ranks(line, targets, [])


def test_ranks_of_a_batch_are_those_of_each_user():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    targets, excluded = [np.array([2]), np.array([1, 2])], [np.array([1]), np.array([], np.int64)]
    assert [own.tolist() for own in target_ranks(scores, targets, excluded)] == [[1], [2, 3]]


def test_a_constant_model_is_last():
    assert target_ranks(torch.zeros(1, 100), [np.array([3])])[0].tolist() == [100]
    assert target_ranks(torch.full((1, 100), float("nan")), [np.array([3])])[0].tolist() == [100]


def test_a_target_named_twice_counts_once():
    ranks = target_ranks(torch.tensor([[3.0, 2.0, 1.0]]), [np.array([1, 1])])
    assert ranks[0].tolist() == [2]
    assert ndcg(ranks, 5)[0] == pytest.approx(1 / math.log2(3))


ranks_of_users = st.lists(
    st.lists(st.integers(1, 15), min_size=1, max_size=6, unique=True).map(lambda own: np.array(sorted(own))), min_size=1, max_size=5
)


@given(ranks_of_users, st.integers(1, 12))
def test_metrics_equal_their_formulas(ranks, k):
    for place, own in enumerate(ranks):
        hits = [r for r in own.tolist() if r <= k]
        assert hit_rate(ranks, k)[place] == pytest.approx(len(hits) / len(own))
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(own)) + 1))
        assert ndcg(ranks, k)[place] == pytest.approx(sum(1 / math.log2(r + 1) for r in hits) / ideal)
        assert reciprocal_rank(ranks)[place] == pytest.approx(1 / min(own.tolist()))


def test_known_numbers():
    ranks = [np.array([1]), np.array([3]), np.array([11])]
    assert hit_rate(ranks, 10).tolist() == [1, 1, 0]
    assert ndcg(ranks, 10) == pytest.approx([1, 0.5, 0])
    assert reciprocal_rank(ranks) == pytest.approx([1, 1 / 3, 1 / 11])
    assert list(per_user(ranks)) == ["HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    assert list(per_user([*ranks, np.array([1, 2])])) == ["Recall@5", "Recall@10", "NDCG@5", "NDCG@10", "MRR"]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_coverage_and_diversity_equal_brute_force(rows, k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(12, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lists = np.stack([rng.permutation(12)[:k] for _ in range(rows)])
    lists[rng.random(lists.shape) < 0.2] = -1
    assert coverage(lists, 12) == pytest.approx(len({int(i) for i in lists.ravel() if i >= 0}) / 12)
    for own, got in zip(lists, diversity(lists, vectors), strict=True):
        shown = [i for i in own if i >= 0]
        cosines = [float(vectors[a] @ vectors[b]) for n, a in enumerate(shown) for b in shown[n + 1 :]]
        assert got == pytest.approx(1 - np.mean(cosines) if cosines else 0.0)


def test_diversity_extremes():
    vectors = np.eye(3)
    assert diversity(np.array([[0, 1, 2]]), vectors) == pytest.approx([1])
    assert diversity(np.array([[1, 1, 1]]), vectors) == pytest.approx([0])


def test_bootstrap_interval():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values, seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert bootstrap_interval(values, seed=1) == (low, high)
    assert bootstrap_interval(np.ones(5)) == (1, 1)
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([])))
