import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from genrec_hub.beam_search import constrained_beam_search, diverse_beam_search, score_all
from genrec_hub.trie import Trie

EOS, WORDS, USERS, LENGTH = 1, 90, 3, 11
KINDS = ["t5", "t5-eager", "qwen3", "llama-eager", "gemma3"]
_small = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_rotary = {**_small, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None}


def make(kind):
    torch.manual_seed(3)
    name, _, attention = kind.partition("-")
    if name == "t5":
        config = T5Config(
            vocab_size=WORDS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
            relative_attention_max_distance=9, pad_token_id=0, eos_token_id=EOS, decoder_start_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    elif name == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**_rotary))
    elif name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**_rotary))
    else:
        # A window shorter than the prompt, in two of three layers.
        config = Gemma3TextConfig(**_rotary, sliding_window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
        model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for number in model.parameters():
            # Strong weights, so that what a token sees matters.
            number.mul_(1.5) if name == "t5" else number.add_(0.12 * torch.randn_like(number))
    model.set_attn_implementation(attention or "sdpa")
    return model.eval()


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda kind: made.setdefault(kind, make(kind))


def batch(seed=0, users=USERS):
    """Prompts of several lengths, padded on the left."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, WORDS, (users, LENGTH), generator=random)
    seen = torch.ones_like(tokens)
    for user in range(users):
        seen[user, : 3 * user % LENGTH] = 0
    return {"input_ids": tokens * seen, "attention_mask": seen}


def catalogue(size, seed=0, words=12, longest=5):
    """Identifiers with many shared beginnings, some the beginning of others."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    while len(found) < size:
        length = int(torch.randint(1, longest + 1, (1,), generator=random))
        found[tuple(torch.randint(2, 2 + words, (length,), generator=random).tolist())] = None
    return list(found)


def taught(model, inputs, sequence):
    """Sum of log-probabilities of one identifier with its end, per user, by teacher forcing, alone in the batch."""
    target = torch.tensor([[*sequence, EOS]])
    sums = []
    for tokens, seen in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        tokens = tokens[seen.bool()][None]
        if model.config.is_encoder_decoder:
            logits = model(input_ids=tokens, labels=target).logits
        else:
            logits = model(input_ids=torch.cat([tokens, target], 1)).logits[:, tokens.shape[1] - 1 : -1]
        sums.append(logits.log_softmax(2).gather(2, target[:, :, None]).sum())
    return torch.stack(sums)


def hugging_face(model, inputs, sequences, beams, **options):
    """generate() under a dict of prefixes: rows and scores per user."""
    legal = {}
    for sequence in sequences:
        whole = (*sequence, EOS)
        for length in range(len(whole)):
            legal.setdefault(whole[:length], []).append(whole[length])
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]

    def allowed(_, tokens):
        return sorted(set(legal.get(tuple(tokens[start:].tolist()), [EOS])))

    out = model.generate(
        **inputs, prefix_allowed_tokens_fn=allowed, num_beams=beams, num_return_sequences=beams,
        max_new_tokens=max(map(len, sequences)) + 1,
        do_sample=False, return_dict_in_generate=True, output_scores=True, pad_token_id=0, eos_token_id=EOS, **options,
    )  # fmt: skip
    rows = []
    for tokens in out.sequences[:, start:].tolist():
        rows.append(sequences.index(tuple(tokens[: tokens.index(EOS)])) if EOS in tokens else -1)
    return torch.tensor(rows).view(-1, beams), out.sequences_scores.view(-1, beams)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("early", "penalty"), [(False, 1.0), (True, 1.0), ("never", 0.6), (False, 0.0)])
def test_equal_to_generate_with_a_prefix_function(models, kind, early, penalty):
    model, inputs, sequences, beams = models(kind), batch(), catalogue(300), 20
    if early is True:
        # Where live paths run out, generate() counts dead beams as finished and then drops real items for them: here they never do.
        sequences = [own for length in range(1, 5) for own in itertools.product(range(2, 8), repeat=length)]
    expected, scores = hugging_face(model, inputs, sequences, beams, early_stopping=early, length_penalty=penalty)
    assert scores.min() > -1e3
    ours = constrained_beam_search(model, inputs, Trie.build(sequences, EOS), beams, early_stopping=early, length_penalty=penalty)
    assert torch.equal(ours.rows, expected)
    torch.testing.assert_close(ours.scores, scores, atol=1e-4, rtol=0)
    for user in range(USERS):
        for row, tokens in zip(ours.rows[user].tolist(), ours.tokens[user].tolist(), strict=True):
            length = len(sequences[row])
            assert tuple(tokens[:length]) == sequences[row]
            assert set(tokens[length:]) == {EOS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_like_lone_users(models, kind):
    model, inputs, trie = models(kind), batch(4), Trie.build(catalogue(120), EOS)
    whole = constrained_beam_search(model, inputs, trie, 10)
    for user in range(USERS):
        seen = inputs["attention_mask"][user].bool()
        alone = constrained_beam_search(model, {"input_ids": inputs["input_ids"][user][seen][None]}, trie, 10)
        assert torch.equal(alone.rows[0], whole.rows[user])
        torch.testing.assert_close(alone.scores[0], whole.scores[user], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_equal_teacher_forcing(models, kind):
    model, inputs, sequences = models(kind), batch(1), catalogue(40)
    trie = Trie.build(sequences[:30], EOS)
    for sequence in sequences[30:]:
        trie.add(sequence)
    with torch.no_grad():
        sums = torch.stack([taught(model, inputs, sequence) for sequence in sequences], 1)
    lengths = torch.tensor([len(sequence) + 1 for sequence in sequences])
    torch.testing.assert_close(score_all(model, inputs, trie, chunk=7), sums / lengths, atol=1e-5, rtol=0)
    torch.testing.assert_close(score_all(model, inputs, trie, length_penalty=0), sums, atol=5e-5, rtol=0)


def test_normalisers_in_chunks_change_nothing(models, monkeypatch):
    model, inputs, trie = models("t5"), batch(2), Trie.build(catalogue(60), EOS)
    whole = score_all(model, inputs, trie)
    monkeypatch.setattr("genrec_hub.beam_search._HEAD_NUMBERS", 3 * USERS * WORDS)
    torch.testing.assert_close(score_all(model, inputs, trie), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_wide_beams_find_every_item_that_may_come_and_no_other(models, kind, data):
    """With beams for everything the search is exact; that is all legal items, once each, prefixes of one another included."""
    model = models(kind)
    ids = st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple)
    sequences = data.draw(st.lists(ids, min_size=1, max_size=12, unique=True))
    size = len(sequences)
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
    excluded = data.draw(st.none() | st.lists(st.lists(st.integers(0, size - 1), max_size=3), min_size=2, max_size=2))
    trie, inputs = Trie.build(sequences, EOS), batch(5, 2)
    mask = None if allowed is None else torch.tensor(allowed)
    found = constrained_beam_search(model, inputs, trie, 16, early_stopping="never", allowed=mask, excluded=excluded)
    exact = score_all(model, inputs, trie)
    for user in range(2):
        gone = () if excluded is None else excluded[user]
        left = [row for row in range(size) if row not in gone and (allowed is None or allowed[row])]
        rows = [row for row in found.rows[user].tolist() if row >= 0]
        assert sorted(rows) == left
        assert found.rows[user, len(left) :].tolist() == [-1] * (16 - len(left))
        assert found.scores[user, len(left) :].tolist() == [-torch.inf] * (16 - len(left))
        torch.testing.assert_close(found.scores[user, : len(left)], exact[user, rows], atol=1e-5, rtol=0)
        assert found.scores[user].tolist() == sorted(found.scores[user].tolist(), reverse=True)


def test_an_added_item_is_found_at_once(models):
    sequences = catalogue(30)
    inputs, trie = batch(6), Trie.build(sequences[:-1], EOS)
    row = trie.add(sequences[-1])
    only = torch.zeros(30, dtype=torch.bool)
    only[row] = True
    found = constrained_beam_search(models("t5"), inputs, trie, 3, allowed=only)
    assert found.rows.tolist() == [[row, -1, -1]] * USERS


def slow_diverse(model, inputs, groups, penalty, shortest, longest):
    """Hamming-diverse greedy groups as the paper writes them: whole sequences fed again at every step, one at a time."""
    results = []
    for user, (tokens, seen) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        tokens = tokens[seen.bool()][None]
        beams = [([], 0.0, False)] * groups
        for step in range(longest):
            taken, after = [], []
            for sequence, score, ended in beams:
                if ended:
                    after.append((sequence, score, True))
                    continue
                given_ = torch.tensor([sequence], dtype=torch.long)
                if model.config.is_encoder_decoder:
                    start = torch.zeros((1, 1), dtype=torch.long)
                    logits = model(input_ids=tokens, decoder_input_ids=torch.cat([start, given_], 1)).logits[0, -1]
                else:
                    logits = model(input_ids=torch.cat([tokens, given_], 1)).logits[0, -1]
                logprobs = logits.log_softmax(0)
                for token in taken:
                    logprobs[token] -= penalty[user]
                if step + 1 < shortest:
                    logprobs[EOS] = -torch.inf
                token = int(logprobs.argmax())
                taken.append(token)
                after.append(([*sequence, token], score + float(logprobs[token]), token == EOS))
            beams = after
        scored = [(score / len(sequence), [token for token in sequence if token != EOS]) for sequence, score, _ in beams]
        results.append(sorted(scored, key=lambda pair: -pair[0]))
    return results


@pytest.mark.parametrize("kind", ["t5", "qwen3", "gemma3"])
@pytest.mark.parametrize(("penalty", "shortest", "longest"), [((1.0, 1.0, 1.0), 1, 6), ((0.0, 2.5, 9.0), 4, 7)])
def test_diverse_groups_against_brute_force(models, kind, penalty, shortest, longest):
    model, inputs = models(kind), batch(7)
    head = model.get_output_embeddings()
    before = head.weight.detach().clone()
    try:
        with torch.no_grad():
            # Ends must come at different steps to be worth a test.
            head.weight[EOS] = 1.6 * before[2:].mean(0) + before[EOS]
            expected = slow_diverse(model, inputs, 6, penalty, shortest, longest)
        found = diverse_beam_search(
            model, inputs, EOS, groups=6, penalty=torch.tensor(penalty), min_length=shortest, max_length=longest
        )  # fmt: skip
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    for user in range(USERS):
        scores = torch.tensor([score for score, _ in expected[user]])
        torch.testing.assert_close(found.scores[user], scores, atol=1e-4, rtol=0)
        sequences = [tokens[:length] for tokens, length in zip(found.tokens[user].tolist(), found.lengths[user].tolist(), strict=True)]
        assert sorted(sequences) == sorted(tokens for _, tokens in expected[user])
    if penalty[0] == 0:
        # Without a penalty all groups say the same, with a large one they differ at every step.
        assert len({tuple(tokens) for tokens in found.tokens[0].tolist()}) == 1
        assert len(set(found.tokens[2, :, 0].tolist())) == 6


def test_what_is_refused_says_why(models):
    trie = Trie.build([[2]], EOS)
    right = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.raises(ValueError, match="on the left"):
        constrained_beam_search(models("qwen3"), right, trie)
    with pytest.raises(ValueError, match="at least one beam"):
        constrained_beam_search(models("t5"), batch(), trie, 0)
    with pytest.raises(ValueError, match="min_length"):
        diverse_beam_search(models("t5"), batch(), EOS, min_length=5, max_length=4)
    with pytest.raises(ValueError, match="not be negative"):
        diverse_beam_search(models("t5"), batch(), EOS, penalty=-1)


def test_the_encoder_runs_once_and_only_once_per_user(models):
    model, rows = models("t5"), []
    hooks = [
        model.encoder.register_forward_hook(lambda *_: rows.append("encoder")),
        model.decoder.block[0].layer[1].EncDecAttention.k.register_forward_hook(lambda _, __, out: rows.append(len(out))),
    ]
    constrained_beam_search(model, batch(), Trie.build(catalogue(100), EOS), 20)
    for hook in hooks:
        hook.remove()
    assert rows == ["encoder", USERS]
