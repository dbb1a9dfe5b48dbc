"""Writers that may only use words of their text."""

from itertools import permutations

import pytest
import torch

from genrec_hub.own_words import OwnWords, legal_tokens
from genrec_hub.phrases import clean_words
from genrec_hub.prompts import labels_of

EOS, SIZE = 1, 12
WORDS = [(2, 3), (2, 4, 5), (6,)]


def written(words) -> list[int]:
    return [token for word in words for token in word]


def test_exactly_the_arrangements_of_words_are_legal():
    """Followed from the start, the legal continuations spell every arrangement of some of the words and nothing else."""
    found = []

    def follow(so_far: list[int]) -> None:
        writer = OwnWords([WORDS], 1, EOS, SIZE)
        for token in so_far:
            assert writer.legal()[0, 0, token]
            writer.take(torch.tensor([[token]]))
        for token in writer.legal()[0, 0].nonzero()[:, 0].tolist():
            if token == EOS:
                found.append(so_far)
            else:
                follow([*so_far, token])

    follow([])
    expected = [written(words) for size in (1, 2, 3) for words in permutations(WORDS, size)]
    assert sorted(found) == sorted(expected)


def test_without_words_only_the_end_is_legal():
    assert OwnWords([[]], 2, EOS, SIZE).legal().nonzero()[:, 2].tolist() == [EOS, EOS]


def test_groups_and_texts_are_followed_apart():
    writer = OwnWords([WORDS, [(7,), (8,)]], 2, EOS, SIZE)
    writer.take(torch.tensor([[2, 6], [7, 8]]))
    legal = [[writer.legal()[row, group].nonzero()[:, 0].tolist() for group in range(2)] for row in range(2)]
    assert legal == [[[3, 4], [EOS, 2]], [[EOS, 8], [EOS, 7]]]


def test_legal_tokens_of_what_was_written():
    labels = labels_of([[6, 2, 3], [9]], EOS)
    legal = legal_tokens([WORDS, WORDS], labels, EOS, SIZE)
    assert legal.shape == (2, 4, SIZE)
    assert [legal[0, step].nonzero()[:, 0].tolist() for step in range(4)] == [[2, 6], [EOS, 2], [3, 4], [EOS, 2]]
    assert legal[1, 0].nonzero()[:, 0].tolist() == [2, 6, 9], "a target that is no word of the text stays possible"


@pytest.mark.parametrize("generator", ["t5", "qwen3"])
@pytest.mark.parametrize("length", [1, 11])
def test_ids_consist_of_the_texts_own_words(tiny_idgenrec, id_processor, generator, length):
    model, processor = tiny_idgenrec(generator=generator, own_words=True, max_length=24), id_processor()
    texts = [*processor.catalog.lines[:8], "hm"]
    for text, candidates in zip(texts, processor.writer.write(model, texts, penalty=2.0, min_length=length), strict=True):
        for words in map(str.split, candidates):
            assert words
            assert len(words) == len(set(words))
            assert set(words) <= set(clean_words(text).split())


def test_a_words_probabilities_are_those_of_legal_tokens(tiny_idgenrec, id_processor):
    """The score of a written ID is the mean log-probability among legal tokens, by plain teacher forcing."""
    model, processor = tiny_idgenrec(own_words=True, max_length=24), id_processor()
    text = processor.catalog.lines[4]
    words = [processor.writer.word_tokens(text)]
    ids = torch.tensor(processor.writer.text_tokens([text]))
    found = model.write({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, penalty=0.0, groups=1, words=words)
    labels = labels_of([found.tokens[0, 0, : int(found.lengths[0, 0])].tolist()], processor.writer.eos)
    legal = legal_tokens(words, labels, processor.writer.eos, len(processor.tokenizer))
    logits = model._written_logits(ids, None, labels, legal)
    scores = logits.log_softmax(-1).gather(2, labels[..., None])[0, :, 0]
    assert torch.allclose(scores.mean(), found.scores[0, 0], atol=1e-5)
    loss = model(text_ids=ids, labels=labels, legal=legal).loss
    assert torch.allclose(loss, -scores.mean(), atol=1e-5)
