"""Training of IDGenRec: what a step reads, what a phase changes, and that an interrupted run ends where an uninterrupted one does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import genrec_hub
from genrec_hub.domain import Domain, Sequences
from genrec_hub.modeling_idgenrec import IDGenRecModel
from genrec_hub.recipes import Settings
from genrec_hub.recipes_idgenrec import train_idgenrec
from genrec_hub.training import training_arguments
from genrec_hub.training_idgenrec import GeneratorTrainer, PackedRecommenderTrainer, PromptRecommenderTrainer

SMALL = {"hidden": 32, "layers": 1, "vocabulary": 400, "writer_epochs": 1, "groups": 2, "beams": 10, "dropout": 0.1}
SETTINGS = Settings(epochs=2, batch=16, rate=1e-3)


@pytest.fixture(scope="module")
def domain(synthetic_domain) -> Domain:
    return synthetic_domain(40, 30, 0)


def trainer_of(kind, model, processor, folder, **more):
    arguments = training_arguments(folder, epochs=1, batch=8, rate=1e-3, steps_per_epoch=1, seed=0)
    rng = np.random.default_rng(0)
    sequences = Sequences.of([rng.permutation(len(processor.catalog))[: rng.integers(3, 7)] for _ in range(16)])
    return kind(model, arguments, processor=processor, sequences=sequences, validation=None, **more)


TRAINERS = [(PackedRecommenderTrainer, "packed"), (PromptRecommenderTrainer, "both"), (GeneratorTrainer, "item")]


@pytest.mark.parametrize(("kind", "prompt"), TRAINERS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("own_words", [False, True])
def test_nothing_at_or_after_a_target_reaches_its_input(kind, prompt, own_words, tiny_idgenrec, id_processor, tmp_path):
    """The last item of a sequence is exchanged: prompts of earlier targets stay byte-identical, and so do those of the last one."""
    encoder = prompt != "packed"
    model = tiny_idgenrec("t5" if encoder else "qwen3", own_words=own_words)
    trainer = trainer_of(kind, model, id_processor(prompt, encoder), tmp_path)
    tokens = trainer.tokens
    same = [row for row, own in enumerate(tokens) if len(own) == len(tokens[9])]
    seen = set()
    for last in (9, next(row for row in same if row not in (9, 3, 10, 31, 5))):
        items = torch.tensor([[3, 10, 31, 5, last]])
        trainer.draw = lambda sequence: np.random.default_rng(1)  # the wording may depend on the items read, never the inputs' content
        batch = trainer.prompts(items, items)
        if kind is PackedRecommenderTrainer:
            before = sum(len(tokens[item]) + 1 for item in (3, 10, 31, 5))
            inputs = (batch["input_ids"].numpy().tobytes(), batch["labels"][:, :before].numpy().tobytes())
        else:
            kept = ("input_ids", "attention_mask", "text_ids", "soft", "written")
            inputs = tuple(batch[name].numpy().tobytes() for name in kept if name in batch)
        seen.add(inputs)
    assert len(seen) == 1


def test_sentences_ask_for_every_item_but_the_first(tiny_idgenrec, id_processor, tmp_path):
    trainer = trainer_of(PromptRecommenderTrainer, tiny_idgenrec("t5"), id_processor("item", True), tmp_path)
    items = torch.tensor([[3, 10, 31, 5], [-1, -1, 22, 7]])
    batch = trainer.prompts(items, items)
    wanted = [trainer.tokens[item] for item in (10, 31, 5, 7)]
    eos = trainer.processor.writer.eos
    assert [row[row >= 0].tolist() for row in batch["labels"]] == [[*own, eos] for own in wanted]
    for line, history in enumerate(([3], [3, 10], [3, 10, 31], [22])):
        text = trainer.processor.tokenizer.decode(batch["input_ids"][line], skip_special_tokens=True)
        assert all(trainer.processor.identifiers.texts[item] in text for item in history)


def test_sentences_in_parts_have_the_gradient_of_all_at_once(tiny_idgenrec, id_processor, tmp_path):
    """Sentences of like length go through together; every target once, each after the same history and in the same wording."""
    subject = trainer_of(PromptRecommenderTrainer, tiny_idgenrec("t5").eval(), id_processor("both", True), tmp_path)
    subject.model.train = lambda mode=True: subject.model  # no dropout
    batch = subject.data_collator([subject.train_dataset[row] for row in range(8)])
    whole = subject.prompts(**batch)
    subject.create_optimizer()
    gradients, in_parts = [], subject.parts
    for parts in (lambda *batch: [batch], in_parts):
        subject.parts, subject.positions = parts, 6
        subject.model.zero_grad()
        loss = subject.training_step(subject.model, batch, (batch["labels"] >= 0).sum())
        gradients.append((loss, {name: p.grad.clone() for name, p in subject.model.named_parameters() if p.grad is not None}))
    parts = [subject.prompts(*part) for part in subject.parts(**batch)]
    assert len(parts) > 4
    assert max(len(part["labels"]) for part in parts) <= 6

    def sentences(own):
        rows = zip(own["input_ids"], own["attention_mask"], own["labels"], strict=True)
        return [(ids[mask > 0].tolist(), label[label >= 0].tolist()) for ids, mask, label in rows]

    assert sorted(sentences(whole)) == sorted(line for part in parts for line in sentences(part))
    (expected, gradient), (loss, found) = gradients
    assert torch.allclose(expected, loss, rtol=1e-5)
    assert gradient.keys() == found.keys()
    assert any(values.any() for values in gradient.values())
    for name, values in gradient.items():
        assert torch.allclose(values, found[name], atol=1e-5), name


def test_a_user_id_is_written_once_about_a_history(tiny_idgenrec, id_processor, tmp_path):
    subject = trainer_of(PromptRecommenderTrainer, tiny_idgenrec("t5"), id_processor("user", True), tmp_path)
    asked, plain = [], subject.processor.user_tokens
    subject.processor.user_tokens = lambda histories, model: asked.extend(histories) or plain(histories, model)
    items = torch.tensor([[3, 10, 31, 5], [-1, 3, 10, 7]])
    first, again = subject.prompts(items, items), subject.prompts(items, items)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert asked == [[subject.tokens[item] for item in own] for own in ([3], [3, 10], [3, 10, 31])]


@pytest.mark.parametrize("strategy", ["recommender", "generator"])
def test_a_phase_changes_its_part_alone(strategy, domain, tmp_path):
    start = tmp_path / "start"
    train_idgenrec(domain, start, SETTINGS, **SMALL)
    before = IDGenRecModel.from_pretrained(start).state_dict()
    report = train_idgenrec(domain, tmp_path / "end", SETTINGS, backbone=str(start), strategy=strategy)
    assert [phase["phase"] for phase in report["phases"]] == [strategy]
    for name, values in IDGenRecModel.from_pretrained(tmp_path / "end").state_dict().items():
        moved = not torch.equal(values, before[name])
        assert moved == (name.startswith(strategy)), name
    with pytest.raises(ValueError, match="was trained under leave-one-out"):
        train_idgenrec(domain, tmp_path / "other", replace(SETTINGS, protocol="global-time"), backbone=str(start))


class Interrupted(TrainerCallback):
    """Stops the run after some steps, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_alternate_training_ends_in_the_same_weights(domain, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = {**SMALL, "strategy": "alternate", "rounds": 2}
    settings = Settings(epochs=4, batch=16, rate=1e-3)
    report = train_idgenrec(domain, whole, settings, **more)
    assert [phase["phase"] for phase in report["phases"]] == ["writer", "recommender", "generator", "recommender"]

    plain = PackedRecommenderTrainer.__init__
    left = [4, 5]

    def interrupting(self, *arguments, **named):
        plain(self, *arguments, **named)
        if left:
            self.add_callback(Interrupted(left.pop(0)))

    monkeypatch.setattr(PackedRecommenderTrainer, "__init__", interrupting)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_idgenrec(domain, cut, settings, resume=True, **more)
    assert not left
    resumed = train_idgenrec(domain, cut, settings, resume=True, **more)
    ours, theirs = (IDGenRecModel.from_pretrained(folder).state_dict() for folder in (whole, cut))
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name
    assert resumed["validation"] == report["validation"]
    assert resumed["best_phase"] == report["best_phase"]
    texts = [genrec_hub.load(folder).processor.identifiers.texts for folder in (whole, cut)]
    assert texts[0] == texts[1]
    assert not (cut / "checkpoints").exists()
    assert json.loads((cut / "training.json").read_text())["validation"] == report["validation"]


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_a_backbone_with_more_rows_than_tokens_and_several_ends(kind, domain, tiny_idgenrec, id_processor, tmp_path):
    """As T5, Qwen and chat models come; layers are computed twice, and IDs are written all the same."""
    model, processor = tiny_idgenrec(kind, own_words=True), id_processor("item", kind == "t5")
    part, size = model.recommender, len(processor.tokenizer)
    part.resize_token_embeddings(size + 12)
    part.config.eos_token_id = [5, processor.tokenizer.eos_token_id] if kind == "qwen3" else processor.tokenizer.eos_token_id
    part.save_pretrained(tmp_path / "backbone")
    processor.tokenizer.save_pretrained(tmp_path / "backbone")
    more = {"writer_epochs": 1, "max_text": 16, "beams": 5, "groups": 2, "own_words": True, "strategy": "alternate"}
    arguments = {"gradient_checkpointing": True}
    train_idgenrec(domain, tmp_path / "out", SETTINGS, backbone=str(tmp_path / "backbone"), arguments=arguments, **more)
    loaded = genrec_hub.load(tmp_path / "out")
    assert loaded.model.eos == processor.tokenizer.eos_token_id
    assert loaded.model.recommender.get_input_embeddings().weight.shape[0] == size + 12
    loaded.processor.copy = 1.0
    assert len(loaded([domain.catalog[0].title], top_k=5)) == 5


@pytest.mark.parametrize("prompt", ["item", "both"])
def test_t5_from_a_folder_is_trained_on_sentences(prompt, domain, tiny_idgenrec, id_processor, tmp_path):
    model, processor = tiny_idgenrec("t5", own_words=True), id_processor(prompt, True)
    model.recommender.save_pretrained(tmp_path / "t5")
    processor.tokenizer.save_pretrained(tmp_path / "t5")
    report = train_idgenrec(
        domain, tmp_path / "out", SETTINGS, backbone=str(tmp_path / "t5"), prompt=prompt, writer_epochs=0, max_text=16, beams=10, groups=2
    )
    assert [phase["phase"] for phase in report["phases"]] == ["recommender"]
    loaded = genrec_hub.load(tmp_path / "out")
    assert loaded.processor.prompts.kind == prompt
    assert len(loaded([domain.catalog[0].title], top_k=5)) == 5


def test_nobody_to_validate_on(domain, tmp_path):
    """Two items a user: nothing can be held out, so no phase validates, whatever else is asked of the Trainer."""
    short = Domain(domain.catalog, domain.users, Sequences.of([own[:2] for own in domain.sequences]))
    report = train_idgenrec(short, tmp_path / "out", SETTINGS, arguments={"eval_strategy": "steps", "eval_steps": 1}, **SMALL)
    assert [phase["phase"] for phase in report["phases"]] == ["writer", "recommender"]
    assert report["validation"] == {}


def test_an_unknown_strategy_is_refused(domain, tmp_path):
    with pytest.raises(ValueError, match="should be one of alternate"):
        train_idgenrec(domain, tmp_path, strategy="both")
