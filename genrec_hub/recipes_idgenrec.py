"""From a domain to a finished IDGenRec folder: tokenizer and generator from the catalogue's own words, IDs, then both parts in turns."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, T5Config, set_seed

from . import processes
from .catalog import Catalog
from .checkpoint import REPORT, refuse_other_protocol
from .configuration_idgenrec import IDGenRecConfig
from .domain import Domain, Split
from .modeling_idgenrec import IDGenRecModel
from .phrases import generator_text, salient_words
from .processing_idgenrec import IDGenRecProcessor
from .recipes import CHECKPOINTS, DEFAULTS, Progress, Settings, circumstances, curve_of, refuse_empty, run_arguments
from .timing import Clock
from .training import run, training_arguments
from .training_idgenrec import GeneratorTrainer, IDGenRecTrainer, PackedRecommenderTrainer, PromptRecommenderTrainer, WriterTrainer

logger = logging.getLogger(__name__)

STRATEGIES = ("alternate", "recommender", "generator")
VALIDATION_USERS = 1000
"""Users who are ranked after an epoch; a beam search each."""


def small_tokenizer(texts: Iterable[str], size: int = 8192) -> PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer of these texts: it knows every string, and words keep their space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return _dressed(tokenizer)


def _dressed(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def tokenizer_of_all(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A `small_tokenizer` that the first of several processes makes, so that all have the same one."""
    own = small_tokenizer(texts, size) if processes.first() else None
    made = processes.told(own.backend_tokenizer.to_str() if own is not None else "")
    return own if own is not None else _dressed(Tokenizer.from_str(made))


def small_language_models(words: int, hidden: int = 128, layers: int = 2, dropout: float = 0.2) -> dict[str, Any]:
    """Configurations of a small decoder-only recommender and a small T5 generator, trained from scratch."""
    heads, special = max(2, hidden // 32), {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    recommender = Qwen3Config(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        **special,
    )
    generator = T5Config(
        vocab_size=words,
        d_model=hidden,
        d_kv=32,
        d_ff=2 * hidden,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        decoder_start_token_id=0,
        **special,
    )
    return {"text_config": recommender, "generator_config": generator}


def train_idgenrec(
    domain: Domain,
    output: str | Path,
    settings: Settings = DEFAULTS,
    resume: bool = False,
    *,
    backbone: str | None = None,
    generator: str | None = None,
    strategy: str = "recommender",
    rounds: int = 2,
    prompt: str | None = None,
    writer_epochs: int = 6,
    generator_rate: float = 1e-4,
    vocabulary: int = 8192,
    max_text: int = 64,
    max_items: int = 20,
    progress: Progress | None = None,
    arguments: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Trains an IDGenRec on a domain and saves it with its catalogue and the catalogue's IDs.

    Phases follow each other, each a run of its own that resumes; what a phase has finished is kept until the end. The round whose
    recommender is best on validation data is saved.

    Args:
        domain: catalogue and interactions.
        output: folder of the finished checkpoint.
        settings: of the recommender's training; epochs are those of all rounds together.
        resume: go on from where `output` stands.
        backbone: an IDGenRec checkpoint, or a pretrained language model (decoder-only or T5) as recommender; small ones from scratch when
            None.
        generator: a pretrained language model as generator, with the backbone's tokenizer; the backbone itself when None.
        strategy: "recommender" trains the recommender alone, on the IDs that the generator writes at the start; "alternate" trains both in
            turns; "generator" the generator alone (IDGenRec Table 5).
        rounds: recommender phases of an alternate training; a generator phase of one epoch stands between two of them.
        prompt: what the recommender reads; see `PromptWriter`. Packed IDs for decoder-only models, sentences of item IDs for T5 when None.
        writer_epochs: passes over the catalogue in which a generator from scratch learns to write salient words; 0 for pretrained ones.
        generator_rate: highest learning rate of a generator phase.
        vocabulary: tokens of a tokenizer made from the catalogue's own text.
        max_text: tokens of an item's text that the generator reads.
        max_items: items of a history that are read, the last ones.
        progress: called with (done, total) while IDs are written.
        arguments: further `TrainingArguments`.
        **config: of `IDGenRecConfig`, and `hidden`, `layers` of the small models.

    Returns:
        The report that is also written as `training.json`.
    """
    processes.join()
    if strategy not in STRATEGIES:
        raise ValueError(f"The strategy is {strategy!r}: it should be one of {', '.join(STRATEGIES)}.")
    chosen = settings.or_else(epochs=16, batch=128, rate=2e-3, negatives=0)
    output, split = Path(output), domain.split(chosen.protocol)
    refuse_empty(split.training)
    refuse_other_protocol(backbone, domain.catalog.fingerprint, chosen.protocol)
    set_seed(chosen.seed)
    clock = Clock()
    more = {"clock": clock, **(arguments or {})}
    work = output / CHECKPOINTS
    if not resume and processes.first():
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()
    # Small models from scratch learn sooner from fewer choices; pretrained ones are trained as the paper says.
    scratch = {"normalizer": "tree", "own_words": True, "max_length": 16, "dropout": 0.2} if backbone is None else {}
    own = {"length_penalty": 0.0, **scratch, **config}
    shape: dict[str, Any] = {"max_items": max_items, "max_text": max_text}
    model, processor, fresh = _start(domain.catalog, backbone, generator, prompt, vocabulary, shape, own)
    turns = [*["writer"] * (fresh and writer_epochs > 0), *_turns(strategy, rounds)]
    report: dict[str, Any] = {"settings": asdict(chosen), "strategy": strategy, "phases": []}
    scores: dict[int, float] = {}
    for number, kind in enumerate(turns):
        place = work / f"{number}-{kind}"
        if resume and (place / "done" / REPORT).is_file():
            model, processor = IDGenRecModel.from_pretrained(place / "done"), IDGenRecProcessor.from_pretrained(place / "done")
            phase = json.loads((place / "done" / REPORT).read_text())
            clock.set(phase.get("spent", {}))
        else:
            set_seed(chosen.seed + number)
            model, processor, phase = _phase(
                kind, model, processor, domain, split, place, chosen, turns, resume, writer_epochs, generator_rate, progress, more
            )
            phase["spent"] = clock.spent()
            _keep(place / "done", model, processor, phase)
        report["phases"].append(phase)
        if kind == "recommender" or (kind, strategy) == ("generator", "generator"):
            scores[number] = phase.get("validation", {}).get("ndcg@10", 0.0)
    best = max(scores, key=lambda number: (scores[number], number))
    source = work / f"{best}-{turns[best]}" / "done"
    model, processor = IDGenRecModel.from_pretrained(source), IDGenRecProcessor.from_pretrained(source)
    model.config.catalog_fingerprint = domain.catalog.fingerprint
    report |= {
        "best_phase": best,
        "validation": report["phases"][best].get("validation", {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **clock.spent(),
        **circumstances(domain, backbone),
    }
    _keep(output, model, processor, report)
    if processes.first():
        shutil.rmtree(work, ignore_errors=True)
    processes.wait()  # whoever reads the folder next finds it still
    return report


def _start(
    catalog: Catalog,
    backbone: str | None,
    generator: str | None,
    prompt: str | None,
    vocabulary: int,
    shape: dict[str, Any],
    config: dict[str, Any],
) -> tuple[IDGenRecModel, IDGenRecProcessor, bool]:
    """The untrained model, a processor without IDs, and whether the generator has still to learn to write."""
    if backbone is not None and (Path(backbone) / "processor_config.json").is_file():
        model, processor = IDGenRecModel.from_pretrained(backbone), IDGenRecProcessor.from_pretrained(backbone)
        return model, processor.without_catalog(), False
    if backbone is None:
        small = {name: config.pop(name) for name in ("hidden", "layers") if name in config}
        texts = [*map(generator_text, catalog), *salient_words(catalog)]
        tokenizer: Any = tokenizer_of_all(texts, vocabulary)
        model = IDGenRecModel(IDGenRecConfig(**small_language_models(len(tokenizer), dropout=config["dropout"], **small), **config))
    else:
        model = IDGenRecModel.from_backbone(backbone, generator, **config)
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    encoder = model.config.has_encoder
    kind = prompt or ("item" if encoder else "packed")
    return model, IDGenRecProcessor(tokenizer, prompt=kind, has_encoder=encoder, **shape), True


def _turns(strategy: str, rounds: int) -> list[str]:
    """The phases in order."""
    if strategy == "alternate":
        return ["recommender", *["generator", "recommender"] * (rounds - 1)]
    return [strategy]


def train_writer(
    model: IDGenRecModel,
    processor: IDGenRecProcessor,
    catalogs: Sequence[Catalog],
    folder: Path,
    epochs: int,
    resume: bool = False,
    seed: int = 0,
    batch: int = 64,
    rate: float = 2e-3,
    phrases: Callable[[Catalog], Sequence[str]] = salient_words,
    clock: Clock | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Teaches the generator to write a phrase about each item of catalogues, its salient words for one. Returns the phase's report.

    `batch` texts are those of all processes together.
    """
    texts = [generator_text(item) for catalog in catalogs for item in catalog]
    wanted = [phrase for catalog in catalogs for phrase in phrases(catalog)]
    own = max(1, batch // processes.count())
    steps = math.ceil(len(texts) / (own * processes.count() * int(more.get("gradient_accumulation_steps", 1))))
    arguments = training_arguments(
        folder, epochs=epochs, batch=own, rate=rate, steps_per_epoch=steps, seed=seed,
        **{**more, "eval_strategy": "no", "load_best_model_at_end": False},
    )  # fmt: skip
    trainer = WriterTrainer(model, arguments, texts, wanted, processor)
    run(trainer, resume, clock)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"phase": "writer", "texts": len(texts), "losses": losses}


def train_recommender(
    model: IDGenRecModel, processor: IDGenRecProcessor, folder: Path, chosen: Settings, split: Split, resume: bool = False, **more: Any
) -> dict[str, Any]:
    """Trains the recommender on the IDs that the processor holds. Returns the phase's report."""
    packed = processor.prompts.kind == "packed"
    kind = PackedRecommenderTrainer if packed else PromptRecommenderTrainer
    return _train(kind, model, processor, folder, chosen, split, resume, **more)


def train_generator(
    model: IDGenRecModel, processor: IDGenRecProcessor, folder: Path, chosen: Settings, split: Split, resume: bool = False, **more: Any
) -> dict[str, Any]:
    """Trains the generator through the frozen recommender, on the IDs that the processor holds. Returns the phase's report."""
    return _train(GeneratorTrainer, model, processor, folder, chosen, split, resume, **more)


def _train(
    kind: type[IDGenRecTrainer],
    model: IDGenRecModel,
    processor: IDGenRecProcessor,
    folder: Path,
    chosen: Settings,
    split: Split,
    resume: bool,
    clock: Clock | None = None,
    **more: Any,
) -> dict[str, Any]:
    ranked = kind.part == "recommender" and len(split.validation) > 0
    blind = {} if ranked else {"eval_strategy": "no", "load_best_model_at_end": False}
    arguments = run_arguments(folder, chosen, split, {**more, **blind})
    trainer = kind(
        model,
        arguments,
        processor=processor,
        sequences=split.training,
        validation=split.validation if ranked else None,
        max_validation=VALIDATION_USERS,
    )
    run(trainer, resume, clock)
    report: dict[str, Any] = {"phase": kind.part, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}
    if ranked:
        report["length_penalty"] = trainer.choose_length_penalty()
        report["validation"] = trainer.rank_validation()
        report["curve"] = curve_of(trainer)
    return report


def _phase(
    kind: str,
    model: IDGenRecModel,
    processor: IDGenRecProcessor,
    domain: Domain,
    split: Split,
    place: Path,
    chosen: Settings,
    turns: Sequence[str],
    resume: bool,
    writer_epochs: int,
    generator_rate: float,
    progress: Progress | None,
    more: dict[str, Any],
) -> tuple[IDGenRecModel, IDGenRecProcessor, dict[str, Any]]:
    """One phase; whatever changes the generator is followed by new IDs."""

    def identified() -> IDGenRecProcessor:
        return processor.without_catalog().with_catalog(domain.catalog, progress, model.eval())

    if kind == "writer":
        report = train_writer(model, processor, [domain.catalog], place, writer_epochs, resume, chosen.seed, **more)
        return model, identified(), report
    if processor.without_ids:
        processor = identified()
    if kind == "generator":
        report = train_generator(model, processor, place, replace(chosen, epochs=1, rate=generator_rate), split, resume, **more)
        return model, identified(), report
    assert chosen.epochs is not None
    share = replace(chosen, epochs=math.ceil(chosen.epochs / turns.count("recommender")))
    return model, processor, train_recommender(model, processor, place, share, split, resume, **more)


def _keep(folder: Path, model: IDGenRecModel, processor: IDGenRecProcessor, report: dict[str, Any]) -> None:
    """Writes what a phase has finished, the report last; the first process for all of them."""
    if processes.first():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    processes.wait()
