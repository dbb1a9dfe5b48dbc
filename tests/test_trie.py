import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from genrec_hub.trie import Trie

EOS = 1
ids = st.lists(st.sampled_from([0, 2, 3, 4]), min_size=1, max_size=4).map(tuple)
catalogues = st.lists(ids, min_size=1, max_size=25, unique=True)


def brute(sequences):
    """Prefix -> {next token}, over whole identifiers with their end."""
    legal = {}
    for sequence in sequences:
        whole = (*sequence, EOS)
        for length in range(len(whole)):
            legal.setdefault(whole[:length], set()).add(whole[length])
    return legal


def walked(trie):
    """The same from the tree, level by level, and {whole identifier: row}."""
    legal, rows, level = {}, {}, [((), trie.root)]
    while level:
        tokens, nodes, counts = trie.children(torch.tensor([node for _, node in level]))
        edges = zip(tokens.tolist(), nodes.tolist(), strict=True)
        below = []
        for (prefix, _), count in zip(level, counts.tolist(), strict=True):
            family = [next(edges) for _ in range(count)]
            assert len({token for token, _ in family}) == count
            if family:
                legal[prefix] = {token for token, _ in family}
            below += [((*prefix, token), node) for token, node in family]
        for prefix, node in below:
            row = int(trie.items(torch.tensor(node)))
            assert (row >= 0) == (prefix[-1] == EOS)
            if row >= 0:
                rows[prefix[:-1]] = row
        level = below
    return legal, rows


@given(catalogues, st.integers(0, 25))
def test_children_are_exactly_the_legal_tokens_built_or_added(sequences, built):
    built = max(1, min(built, len(sequences)))
    trie = Trie.build(sequences[:built], EOS)
    for row, sequence in enumerate(sequences[built:], built):
        assert trie.find(sequence) == -1
        assert trie.add(sequence) == row
    assert len(trie) == len(sequences)
    assert trie.depth == max(map(len, sequences)) + 1
    for same in (trie, trie.merged()):
        legal, rows = walked(same)
        assert legal == brute(sequences)
        assert rows == {sequence: row for row, sequence in enumerate(sequences)}
        assert [same.find(sequence) for sequence in sequences] == list(range(len(sequences)))


@given(catalogues)
def test_paths_and_sequences_of_rows(sequences):
    trie = Trie.build(sequences[: len(sequences) // 2 + 1], EOS)
    for sequence in sequences[len(sequences) // 2 + 1 :]:
        trie.add(sequence)
    rows = torch.arange(len(sequences)).flip(0)
    tokens, paths = trie.sequences(rows), trie.paths(rows)
    for row, own, path in zip(rows.tolist(), tokens.tolist(), paths.tolist(), strict=True):
        length = len(sequences[row]) + 1
        assert own == [*sequences[row], *[EOS] * (tokens.shape[1] - length + 1)]
        assert path[length:] == [-1] * (paths.shape[1] - length)
        node = trie.root
        for token, child in zip(own, path[:length], strict=False):
            family, children, _ = trie.children(torch.tensor([node]))
            assert (token, child) in list(zip(family.tolist(), children.tolist(), strict=True))
            assert child > node
            node = child
        assert int(trie.items(torch.tensor(node))) == row


@given(catalogues, st.data())
def test_the_tree_restricted_to_items_is_the_tree_of_these_items(sequences, data):
    late = data.draw(st.integers(0, len(sequences) - 1))
    trie = Trie.build(sequences[: len(sequences) - late], EOS)
    for sequence in sequences[len(sequences) - late :]:
        trie.add(sequence)
    size = len(sequences)
    mask = st.lists(st.booleans(), min_size=size, max_size=size)
    allowed = data.draw(st.none() | mask | st.lists(mask, min_size=2, max_size=2))
    each = allowed is not None and isinstance(allowed[0], list)
    rows = st.lists(st.integers(0, size - 1), max_size=6)
    excluded = data.draw(st.none() | st.lists(rows, min_size=2, max_size=2))
    open_nodes = trie.open_nodes(None if allowed is None else torch.tensor(allowed), excluded, users=2)
    if allowed is None and excluded is None:
        assert open_nodes is None
        return
    assert open_nodes.shape == (1 if excluded is None and not each else 2, trie.nodes)
    for user, own in enumerate(open_nodes):
        gone = () if excluded is None else excluded[user]
        may = allowed[user] if each else allowed
        left = [row for row in range(size) if row not in gone and (may is None or may[row])]
        paths = trie.paths(torch.tensor(left, dtype=torch.long))
        expected = set(paths[paths >= 0].tolist()) | ({trie.root} if left else set())
        assert set(own.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize(
    ("sequences", "sentence"),
    [
        ([], "at least one identifier"),
        ([[2], []], "row 1 is empty"),
        ([[2], [3, 4], [2]], r"Rows 0 and 2 have the same identifier \[2\]"),
        ([[2, 3], [4, EOS]], "row 1 has the token 1"),
        ([[2, -3]], "row 0 has the token -3"),
    ],
)
def test_what_build_refuses(sequences, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trie.build(sequences, EOS)


@pytest.mark.parametrize(
    ("sequence", "sentence"), [([], "is empty"), ([2, 3], "Row 0 has the identifier"), ([2, EOS], "end token"), ([-2], "negative")]
)
def test_what_add_refuses_leaves_the_tree_as_it_was(sequence, sentence):
    trie = Trie.build([[2, 3], [2]], EOS)
    before = walked(trie)
    with pytest.raises(ValueError, match=sentence):
        trie.add(sequence)
    assert walked(trie) == before
    assert (len(trie), trie.nodes) == (2, 6 - 1)


def test_what_restricting_refuses():
    trie = Trie.build([[2, 3], [2]], EOS)
    with pytest.raises(ValueError, match="2 items"):
        trie.open_nodes(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        trie.open_nodes(None, [[2]])
    with pytest.raises(ValueError, match="2 users"):
        trie.open_nodes(None, [[1]], users=2)


def test_saved_and_loaded_with_what_was_added(tmp_path):
    trie = Trie.build([[5, 6], [5]], EOS)
    trie.add([4, 4, 4])
    trie.add([5, 6, 7])
    trie.save(tmp_path / "trie.safetensors")
    again = Trie.load(tmp_path / "trie.safetensors")
    assert walked(again) == walked(trie.merged())
    assert (again.eos, len(again), again.depth, again.nodes) == (EOS, 4, 4, trie.nodes)
    assert again.add([9]) == 4


def test_a_file_of_another_kind_is_refused(tmp_path):
    save_file({"tokens": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no prefix tree of version 1"):
        Trie.load(tmp_path / "other.safetensors")


def test_many_additions_keep_old_rows_and_find_the_new_ones():
    random = np.random.default_rng(0)
    every = list(dict.fromkeys(tuple(random.integers(2, 60, random.integers(1, 6)).tolist()) for _ in range(4000)))
    trie = Trie.build(every[:1000], EOS)
    old = trie.sequences(torch.arange(1000))
    for row, sequence in enumerate(every[1000:], 1000):
        assert trie.add(sequence) == row
    assert torch.equal(trie.sequences(torch.arange(1000)), old)
    assert [trie.find(sequence) for sequence in every] == list(range(len(every)))
    assert walked(trie)[0] == brute(every)
