"""Algorithm 1: unique, stable, append-only identifiers."""

import random
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from genrec_hub.beam_search import diverse_beam_search
from genrec_hub.catalog import Catalog, Item
from genrec_hub.identifiers import FILE, Identifier, Identifiers, assign_identifiers, schedule
from genrec_hub.phrases import clean_words, generator_text, salient_words
from genrec_hub.trie import Trie


def encode(text: str) -> list[int]:
    """A tokenizer that loses nothing: one token a character."""
    return [ord(char) for char in text]


class Scripted:
    """A generator that answers by a rule and notes what it is asked."""

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    def __call__(self, texts, penalty, min_length):
        self.calls.append((penalty, min_length, list(texts)))
        return [self.rule(text, penalty, min_length) for text in texts]


def assign(items, rule=lambda text, *_: [text], encode=encode, **settings):
    generate = rule if isinstance(rule, Scripted) else Scripted(rule)
    return assign_identifiers(items, generate, encode, generator="g1", **settings)


def by_item(made: Identifiers) -> dict[str, Identifier]:
    return dict(zip(made.item_ids, made, strict=True))


def check(made: Identifiers, items, unknown=None) -> None:
    """What holds for every catalogue and every generator."""
    assert made.item_ids == [item.item_id for item in items]
    assert len(set(made.texts)) == len({own.tokens for own in made}) == len(items)
    for text, tokens in made:
        assert text == clean_words(text, 99) == text.lower() != ""
        assert tokens == tuple(encode(text))
        assert unknown not in tokens
    if len(made):
        assert len(Trie.build([own.tokens for own in made], eos=1)) == len(made)


# The rounds


def test_schedule_is_that_of_the_paper():
    assert list(schedule(19)) == [(float(p), length) for length in (1, 11) for p in range(1, 10)] + [(1.0, 21)]


def test_losers_go_again_with_penalties_1_to_9_then_longer():
    """b always loses; it gets its own at penalty 1 of the second length, and nobody else is asked again."""
    generate = Scripted(lambda text, penalty, length: ["free at last"] if (penalty, length) == (1, 11) else ["the same"])
    items = [Item("b", "beta"), Item("a", "alpha")]
    made = assign(items, generate)
    assert made.texts == ["free at last", "the same"]
    asked = [(penalty, length, texts) for penalty, length, texts in generate.calls]
    assert asked == [(1.0, 1, ["alpha", "beta"])] + [(float(p), 1, ["beta"]) for p in range(2, 10)] + [(1.0, 11, ["beta"])]


def test_the_first_free_candidate_is_taken_in_the_order_of_the_ids():
    items = [Item("c", "x"), Item("a", "y"), Item("b", "z")]
    made = by_item(assign(items, lambda *_: ["One!", "ONE", "", "--", "two", "three"]))
    assert [made[name].text for name in "abc"] == ["one", "two", "three"]


def test_rounds_and_texts_are_bounded():
    items = [Item(f"i{row}", f"title {row}") for row in range(10)]
    generate = Scripted(lambda *_: ["same"])
    check(assign(items, generate), items)
    assert len(generate.calls) == 18
    generate = Scripted(lambda *_: ["same"])
    check(assign(items, generate, rounds=3), items)
    assert len(generate.calls) == 3
    generate = Scripted(lambda *_: ["same"])
    check(assign(items, generate, most=30), items)
    assert [len(texts) for *_, texts in generate.calls] == [10, 9, 9]
    generate = Scripted(lambda *_: ["same"])
    check(assign(items, generate, most=1), items)
    assert len(generate.calls) == 1, "the first round always is"
    generate = Scripted(lambda *_: ["same"])
    check(assign(items, generate, rounds=0), items)
    assert generate.calls == []
    items, generate = big(15_000), Scripted(lambda *_: [])
    check(assign(items, generate), items)
    assert sum(len(texts) for *_, texts in generate.calls) <= 22_500


def test_equal_texts_are_asked_once():
    items = [Item(f"i{row}", "twin") for row in range(5)]
    generate = Scripted(lambda *_: ["a", "b", "c"])
    made = assign(items, generate)
    assert all(texts == ["twin"] for *_, texts in generate.calls)
    assert made.texts == ["a", "b", "c", "a twin", "a 2"]


def test_tokens_are_unique_too():
    """A tokenizer that drops vowels: `bad` and `bd` differ as text only."""
    lossy = lambda text: [ord(char) for char in text if char not in "aeiou"]  # noqa: E731
    made = assign([Item("1", "x"), Item("2", "y")], lambda *_: ["bad", "bd", "be", "i"], encode=lossy, rounds=1)
    assert made.texts == ["bad", "be"]
    made = assign([Item("1", "Mug"), Item("2", "Pan")], lambda *_: ["bad", "bd", "i"], encode=lossy, rounds=1)
    assert made.texts == ["bad", "bad pan"]
    assert made[1].tokens == tuple(lossy("bad pan"))


def test_no_unknown_tokens():
    """A tokenizer of Latin letters and digits."""

    def latin(text):
        return [ord(char) if char.isascii() else 0 for char in text]

    items = [Item("1", "דגן"), Item("2", "דגן Mill"), Item("3", "דגן"), Item("4", "🎧"), Item("5", "")]
    made = assign(items, lambda text, *_: [text], encode=latin, unknown=0)
    assert made.texts == ["1", "mill", "3", "4", "5"]
    made = assign([Item("דגן"), Item("חלב")], lambda text, *_: [text], encode=latin, unknown=0)
    assert sorted(made.texts) == ["item", "item 2"]


def test_a_tokenizer_without_digits_counts_in_letters():
    spelled = lambda text: [ord(char) if char in "item ab" else 0 for char in text]  # noqa: E731
    made = assign([Item(f"0{row}") for row in range(8)], encode=spelled, unknown=0)
    assert made.texts == ["item", "item a", "item b", "item e", "item i", "item m", "item t", "item aa"]


def test_a_tokenizer_that_knows_nothing_is_refused():
    with pytest.raises(ValueError, match=r"No identifier is left for item '1'.*train it"):
        assign([Item("1", "x")], encode=lambda _: [3], unknown=3)
    with pytest.raises(ValueError, match="No identifier is left for item '2'"):
        assign([Item("1", "x"), Item("2", "y")], encode=lambda _: [3])


def test_faults_are_named():
    with pytest.raises(ValueError, match="item_id 'a' occurs twice"):
        assign([Item("a"), Item("a")])
    with pytest.raises(ValueError, match="2 texts and answered for 1"):
        assign_identifiers([Item("a"), Item("b")], lambda *_: [["x"]], encode, generator="g")


# Words of their own


def test_disambiguator_takes_rare_words_of_the_title_first():
    crowd = [Item(f"z{row}", f"Thing number{row} blue") for row in range(40)]
    items = [
        Item("a", "Blue Kettle"),
        Item("b", "Blue Kettle Oslo", "Nordhavn", "Kitchen > Kettles", "enamelled"),
        Item("c", "Blue Kettle", "Nordhavn", "Kitchen > Kettles", "enamelled"),
        Item("d", "Blue Kettle", "", "", "the enamelled"),
        Item("e", "Blue Kettle"),
        Item("f", "Kettle Blue"),
    ]
    rule = lambda text, *_: ["kettle"] if "Kettle" in text else [text]  # noqa: E731
    made = by_item(assign(items + crowd, rule, rounds=1))
    assert {name: made[name].text for name in "abcdef"} == {
        "a": "kettle", "b": "kettle oslo", "c": "kettle nordhavn", "d": "kettle enamelled", "e": "kettle blue", "f": "kettle 2",
    }  # fmt: skip


def test_disambiguator_says_what_the_other_does_not():
    crowd = [Item(f"z{row}", f"Rack {row} for 36 bottles") for row in range(40)]
    items = [Item("a", "Polish Rack for 60 Bottles, oak"), Item("b", "Polish Rack for 36 Bottles, oak")]
    made = by_item(assign(items + crowd, lambda text, *_: ["polish rack"] if "Polish" in text else [text], rounds=1))
    assert [made[name].text for name in "ab"] == ["polish rack", "polish rack 36"]


def test_disambiguator_is_deterministic_and_order_independent():
    items = [Item(f"i{row:03d}", f"Hair Oil {row % 7}", f"brand{row % 5}", "Beauty > Oils", f"note {row % 11}") for row in range(200)]
    known = by_item(assign(items, lambda *_: ["hair oil"], rounds=2))
    for seed in range(3):
        random.Random(seed).shuffle(items)
        made = assign(items, lambda *_: ["hair oil"], rounds=2)
        assert by_item(made) == known
        check(made, items)


def test_equal_and_wordless_items():
    items = [Item(f"i{row}", "Same Thing") for row in range(50)] + [Item(f"e{row}", "👍") for row in range(5)] + [Item("x y", "")]
    made = assign(items)
    check(made, items)
    assert made.texts[:3] == ["same thing", "same thing 2", "same thing 13"], "i10 to i19 come before i2"
    assert made.texts[-1] == "x y"
    silent = assign(items, lambda *_: [])
    check(silent, items)


# Stability


def words_rule(text, penalty, min_length):
    """Ten candidates made of the text's own words; more of them, and others, with the round."""
    own = text.casefold().split()
    start = int(penalty) - 1
    return [" ".join(own[beam % 3 : beam % 3 + 2 + (start + beam) // 3 + min_length // 5]) for beam in range(10)]


def big(size: int, seed: int = 0, stock: int = 240) -> list[Item]:
    rng = random.Random(seed)
    words = [f"{kind}{number}" for number in range(stock // 4) for kind in ("soap", "oil", "brush", "creme")]
    return [Item(f"{rng.getrandbits(40):010x}", " ".join(rng.choices(words, k=3)), rng.choice(words)) for _ in range(size)]


def plain(items, rule, rounds):
    """The rounds as plainly as can be: one item after the other, every taken identifier looked through."""
    made = {}
    for penalty, length in schedule(rounds):
        for item in sorted(items, key=lambda item: item.item_id):
            for text in map(clean_words, rule(generator_text(item), penalty, length)):
                if item.item_id not in made and text and all(text != other and encode(text) != encode(other) for other in made.values()):
                    made[item.item_id] = text
    return made


@pytest.mark.parametrize("rounds", [1, 4, 11])
def test_rounds_equal_the_plain_form(rounds):
    items = big(150, stock=12)
    expected = plain(items, words_rule, rounds)
    assert rounds > 4 or len(expected) < len(items)
    made = by_item(assign(items, words_rule, rounds=rounds))
    assert {item_id: made[item_id].text for item_id in expected} == expected


def test_neither_file_order_nor_batches_matter():
    items = big(600)
    known = assign(items, words_rule)
    check(known, items)

    def batched(texts, penalty, min_length):
        backwards = sorted(texts, reverse=True)
        answers = {}
        for start in range(0, len(backwards), 7):
            answers |= {text: words_rule(text, penalty, min_length) for text in backwards[start : start + 7]}
        return [answers[text] for text in texts]

    random.Random(1).shuffle(items)
    assert by_item(assign_identifiers(items, batched, encode, generator="g1")) == by_item(known)


def test_a_real_generator_in_any_batches():
    """A random T5 whose words are those of the items, by the diverse beam search: one answer whatever stands beside a text."""
    words = [f"{kind}{number}" for kind in ("soap", "oil", "brush") for number in range(16)]
    number = {word: place + 3 for place, word in enumerate(words)}
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=len(words) + 3, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)

    def tokenize(text):
        return [number.get(word, 2) for word in text.split()]

    def generate(size, texts, penalty, min_length):
        made = []
        for start in range(0, len(texts), size):
            tokens = [torch.tensor(tokenize(clean_words(text))) for text in texts[start : start + size]]
            prompt = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            inputs = {"input_ids": prompt, "attention_mask": (prompt != 0).long()}
            found = diverse_beam_search(model, inputs, 1, penalty=penalty, min_length=min_length, max_length=min_length + 9)
            for row, lengths in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True):
                made.append([" ".join(words[token - 3] for token in own[:end] if token > 2) for own, end in zip(row, lengths, strict=True)])
        return made

    rng = random.Random(0)
    items = [Item(f"{row:02d}", " ".join(rng.choices(words, k=1 + row % 6))) for row in range(40)]
    made = assign_identifiers(items, partial(generate, 1), tokenize, generator="g1", unknown=2, rounds=12)
    assert len(set(made.texts)) == 40
    assert [own.tokens for own in made] == [tuple(tokenize(own.text)) for own in made]
    for size in (7, 40):
        rng.shuffle(items)
        assert by_item(assign_identifiers(items, partial(generate, size), tokenize, generator="g1", unknown=2, rounds=12)) == by_item(made)


def test_a_thousand_new_items_leave_12k_as_they_are(tmp_path):
    """Issue 4: identifiers are append-only, byte for byte; and quick."""
    everything = Catalog(big(13_000, seed=2))
    items, more = everything[:12_000], list(everything)
    start = time.process_time()
    old = assign(items, words_rule, catalog=items.fingerprint)
    seconds = time.process_time() - start
    check(old, items)
    assert seconds < 20
    generate = Scripted(words_rule)
    new = assign(more, generate, old=old)
    check(new, more)
    assert {text for *_, texts in generate.calls for text in texts} <= {generator_text(item) for item in more[12_000:]}
    assert new[:12_000] == old[:]
    assert new.version == old.version == 1
    old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    before, after = load_file(tmp_path / "old" / FILE), load_file(tmp_path / "new" / FILE)
    for name, array in before.items():
        assert after[name][: len(array)].tobytes() == array.tobytes(), name
    # In another order, and with an item gone whose identifier stays taken.
    shuffled = more[1:]
    random.Random(0).shuffle(shuffled)
    again = by_item(assign(shuffled, words_rule, old=old))
    assert again == {item_id: own for item_id, own in by_item(new).items() if item_id != more[0].item_id}


def test_what_is_gone_stays_taken():
    old = assign([Item("a", "x")], lambda *_: ["one"])
    made = assign([Item("b", "y")], lambda *_: ["one", "two"], old=old)
    assert made.texts == ["two"]


def test_another_generator_makes_another_version():
    items = [Item("a", "x"), Item("b", "y")]
    old = assign_identifiers(items, Scripted(lambda text, *_: [f"old {text}"]), encode, generator="g0")
    made = assign(items, lambda text, *_: [f"new {text}"], old=old)
    assert made.texts == ["new x", "new y"]
    assert (old.version, made.version, made.fingerprint) == (1, 2, "g1")
    assert assign(items, old=made).version == 2


def test_twelve_thousand_equal_items_are_no_harder():
    """Uniqueness is a look-up: no scan of all that is taken, no number tried twice."""
    items = [Item(f"{row:05d}", "Plain White Mug", "Okapi", "Kitchen > Mugs", "A mug.") for row in range(12_000)]
    start = time.process_time()
    made = assign(items, lambda *_: ["mug"] * 10)
    assert time.process_time() - start < 20
    assert len(set(made.texts)) == 12_000
    assert made.texts[-1] == f"mug {12_000 - len([text for text in made.texts if not text[-1].isdigit()]) + 1}"


def test_progress_counts_up():
    seen = []
    items = [Item(f"i{row}", f"t{row % 3}") for row in range(9)]
    assign(items, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 9), (3, 9), (9, 9)]


words_of_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(
    st.lists(st.tuples(st.integers(0, 99), words_of_texts, words_of_texts), max_size=12, unique_by=lambda own: own[0]),
    st.lists(words_of_texts, max_size=3),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_any_catalogue_and_any_generator(fields, candidates, rounds, rng):
    items = [Item(f"i{number}", title, description=description) for number, title, description in fields]

    def rule(text, penalty, min_length):
        return [*candidates, text[: int(penalty)]]

    made = assign(items, rule, rounds=rounds)
    check(made, items)
    known = by_item(made)
    rng.shuffle(items)
    assert by_item(assign(items, rule, rounds=rounds)) == known
    half = items[: len(items) // 2]
    old = assign(half, rule, rounds=rounds)
    grown = assign(items, rule, rounds=rounds, old=old)
    check(grown, items)
    assert grown[: len(half)] == old[:]


# Keeping


@pytest.fixture
def made() -> Identifiers:
    return Identifiers(["i1", "ü2"], ["hair oil", "größe"], [[3, 4], [7]], generator="abc", version=3, catalog="def")


def test_identifiers_are_a_sequence(made):
    assert len(made) == 2
    assert made[1] == made[-1] == Identifier("größe", (7,))
    assert made[:] == list(made) == [("hair oil", (3, 4)), ("größe", (7,))]
    assert [own.tolist() for own in made.tokens] == [[3, 4], [7]]
    assert all(own.dtype == np.int32 for own in made.tokens)
    with pytest.raises(IndexError):
        made[2]
    assert "2 items, version 3" in repr(made)


@pytest.mark.parametrize("empty", [False, True])
def test_round_trip(made, tmp_path, empty):
    made = Identifiers([], [], [], generator="abc") if empty else made
    path = made.save(tmp_path / "new folder")
    assert path.name == FILE
    again = Identifiers.load(tmp_path / "new folder")
    assert list(again) == list(made)
    for name in ("item_ids", "texts", "fingerprint", "version", "catalog"):
        assert getattr(again, name) == getattr(made, name)
    first = path.read_bytes()
    for _ in range(5):
        again.save(tmp_path)
        assert (tmp_path / FILE).read_bytes() == first


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ((["a"], ["x"], []), "1 item ids, 1 texts and 0 token"),
        ((["a"], [""], [[1]]), "item 'a' is empty"),
        ((["a"], ["x"], [[]]), "item 'a' is empty"),
        ((["a", "b"], ["x", "x"], [[1], [2]]), "'a' and 'b' have the same text: 'x'"),
        ((["a", "b"], ["x", "y"], [[1], [1]]), "'a' and 'b' have the same tokens: 'y'"),
        ((["a", "a"], ["x", "y"], [[1], [2]]), "item_id 'a' occurs twice"),
    ],
)
def test_identifiers_that_are_none(rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        Identifiers(*rows, generator="g")


def test_load_refuses(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no identifiers"):
        Identifiers.load(tmp_path)
    path = made.save(tmp_path)
    good, arrays = path.read_bytes(), load_file(path)
    path.write_bytes(good[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        Identifiers.load(tmp_path)
    path.write_bytes(good.replace(b'\\"format_version\\": 1', b'\\"format_version\\": 9'))
    with pytest.raises(ValueError, match="format 9, this package reads up to 1: upgrade"):
        Identifiers.load(tmp_path)
    path.write_bytes(good.replace(b'\\"generator\\"', b'\\"generatoR\\"'))
    with pytest.raises(ValueError, match="is damaged"):
        Identifiers.load(tmp_path)
    path.write_bytes(good.replace(b'{\\"format', b'[\\"format'))
    with pytest.raises(ValueError, match="is damaged"):
        Identifiers.load(tmp_path)
    save_file(arrays, path, metadata={"format": "genrec-trie"})
    with pytest.raises(ValueError, match="holds no identifiers"):
        Identifiers.load(tmp_path)
    told = '{"format_version": 1, "version": 1, "generator": "a", "catalog": ""}'
    for name, wrong in {
        "token_offsets": np.array([0, 5, 3]),
        "text_offsets": np.array([0, 12]),
        "texts": np.full(len(arrays["texts"]), 255, np.uint8),
        "tokens": np.zeros(3, np.float32),
    }.items():
        save_file(arrays | {name: wrong}, path, metadata={"genrec-identifiers": told})
        with pytest.raises(ValueError, match="is damaged"):
            Identifiers.load(tmp_path)
    save_file({name: array for name, array in arrays.items() if name != "texts"}, path, metadata={"genrec-identifiers": told})
    with pytest.raises(ValueError, match="is damaged"):
        Identifiers.load(tmp_path)


def test_real_catalogue(shared):
    """Beauty, with its phrases as the only candidate: what the rule makes of the rest is short and readable."""
    items = Catalog.from_file(shared / "amazon14_beauty" / "items.parquet")
    phrase = dict(zip(map(generator_text, items), salient_words(items), strict=True))
    made = assign(items, lambda text, *_: [phrase[text]], rounds=1)
    check(made, items)
    lengths = np.array([len(text.split()) for text in made.texts])
    assert 3 < lengths.mean() < 6
    assert sum(text.split()[-1].isdigit() for text in made.texts) < 0.02 * len(items)
