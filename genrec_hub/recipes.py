"""From a domain to a finished checkpoint folder: SASRec (the CF tokenizer), then SETRec on top of it."""

import json
import logging
import math
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, TrainingArguments, set_seed

from . import processes
from .checkpoint import REPORT, refuse_other_protocol
from .configuration_sasrec import SASRecConfig
from .configuration_setrec import SETRecConfig
from .domain import Domain, Protocol, Sequences, Split
from .modeling_sasrec import SASRecModel
from .modeling_setrec import SETRecModel
from .processing_setrec import CROWDING, SETRecProcessor
from .semantic import DEFAULT_ENCODER
from .timing import Clock
from .training import NextItemTrainer, SASRecTrainer, SETRecTrainer, run, training_arguments

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """Settings of a run; None takes the recipe's own value.

    Attributes:
        epochs: passes over the training sequences.
        batch: sequences of a step.
        rate: highest learning rate.
        negatives: items drawn per step besides the targets; 0 = full softmax.
        every: epochs between validations and checkpoints.
        seed: of everything random.
        protocol: how the interactions are split.
    """

    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    negatives: int | None = None
    every: int = 1
    seed: int = 0
    protocol: Protocol = "leave-one-out"

    def or_else(self, epochs: int, batch: int, rate: float, negatives: int) -> "Settings":
        """Fills what is None."""
        chosen = {"epochs": epochs, "batch": batch, "rate": rate, "negatives": negatives}
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return Settings(**{**chosen, **given})


DEFAULTS = Settings()


def small_backbone(hidden: int = 64, layers: int = 2, dropout: float = 0.3) -> Qwen3Config:
    """A Qwen3 of small size, trained from scratch; its vocabulary is the one start token of the prompt."""
    heads = max(2, hidden // 32)
    return Qwen3Config(
        vocab_size=1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        attention_dropout=dropout,
        use_cache=False,
    )


def train_sasrec(domain: Domain, output: str | Path, settings: Settings = DEFAULTS, resume: bool = False, **config: Any) -> dict[str, Any]:
    """Trains a SASRec on a domain's training sequences and saves it, best validation checkpoint first.

    Args:
        domain: catalogue and interactions.
        output: folder of the finished model.
        settings: of the run.
        resume: go on from the last checkpoint in `output`.
        **config: of `SASRecConfig`.

    Returns:
        The report that is also written as `training.json`.
    """
    processes.join()
    if not resume and processes.first():
        (Path(output) / REPORT).unlink(missing_ok=True)  # an interrupted run would pass for an earlier one
    chosen = settings.or_else(epochs=24, batch=256, rate=2e-3, negatives=2048)
    split, size = domain.split(chosen.protocol), len(domain.catalog)
    refuse_empty(split.training)
    set_seed(chosen.seed)
    model = SASRecModel(SASRecConfig(**{"temperature": 0.1, **config}, num_items=size, catalog_fingerprint=domain.catalog.fingerprint))
    trainer = SASRecTrainer(
        model,
        run_arguments(output, chosen, split),
        sequences=split.training,
        validation=split.validation if len(split.validation) else None,
        catalog_size=size,
        negatives=negatives_of(chosen, size),
        max_items=model.config.max_length,
    )
    return finish(trainer, Path(output), chosen, resume, lambda: circumstances(domain))


def train_setrec(
    domain: Domain,
    output: str | Path,
    settings: Settings = DEFAULTS,
    resume: bool = False,
    *,
    backbone: str | None = None,
    sasrec: str | Path | None = None,
    cf: bool = True,
    encoder: str = DEFAULT_ENCODER,
    progress: Progress | None = None,
    arguments: dict[str, Any] | None = None,
    spelling: int = 0,
    spelling_length: float = 1.0,
    crowding: float = 0.0,
    cold_share: float = 0.0,
    keep: float = 0.0,
    **config: Any,
) -> dict[str, Any]:
    """Trains a SETRec on a domain and saves it with its catalogue.

    Args:
        domain: catalogue and interactions.
        output: folder of the finished checkpoint.
        settings: of the run.
        resume: go on from the last checkpoint in `output`.
        backbone: a pretrained checkpoint (decoder-only or T5) to start from; a small Qwen3 from scratch when None.
        sasrec: folder of the SASRec whose item vectors become CF tokens; trained into `output/cf` when None.
        cf: False for semantic tokens alone.
        encoder: the sentence encoder.
        progress: called with (done, total) while texts are encoded.
        arguments: further `TrainingArguments`.
        spelling: width of the spelling vectors beside the encoder's; 0 = none.
        spelling_length: of those vectors, where the encoder's are 1 long.
        crowding: weight of an item's crowding against it at the start, in units of the cosine; 0 = not known to the model.
        cold_share: share of the items that every step sees as if they had no interactions, so that items without any are recommended well.
        keep: share of the untrained weights in the finished ones and in those that are validated: see `SETRecTrainer`.
        **config: of `SETRecConfig`; with a backbone, `attn_implementation` too.

    Returns:
        The report that is also written as `training.json`.

    Raises:
        ValueError: when the SASRec was trained on another catalogue.
    """
    processes.join()
    # A backbone's values are those of SETRec's scripts: its T5 is trained whole, its Qwen through adapters.
    if backbone is None:
        chosen = settings.or_else(epochs=14, batch=256, rate=2e-3, negatives=1024)
    else:
        chosen = settings.or_else(epochs=20, batch=64, rate=1e-3 if config.get("lora") is None else 3e-4, negatives=1024)
    output, size = Path(output), len(domain.catalog)
    split = domain.split(chosen.protocol)
    refuse_empty(split.training)
    processor = SETRecProcessor(
        domain.catalog,
        encoder=encoder,
        max_items=config.get("max_items", 50),
        progress=progress,
        spelling=spelling,
        spelling_length=spelling_length,
        crowding=crowding > 0,
    )
    if cf:
        folder = Path(sasrec) if sasrec is not None else output / "cf"
        if sasrec is None and not (resume and (folder / REPORT).is_file()):
            train_sasrec(domain, folder, Settings(seed=chosen.seed, protocol=chosen.protocol), resume)
        refuse_other_protocol(folder, domain.catalog.fingerprint, chosen.protocol)
        processor = with_cf(processor, folder, split)
    features = processor.features
    own = {
        "semantic_size": features["semantic"].shape[1],
        "cf_size": features["cf"].shape[1] if cf else 0,
        "catalog_fingerprint": domain.catalog.fingerprint if cf else "",
        "max_items": processor.max_items,
        "prior": crowding > 0 or config.get("prior", False),
    }
    set_seed(chosen.seed)
    if backbone is None:
        scratch = {
            "semantic_tokens": 3,
            "normalize": "slot",
            "fused_loss": 0.5,
            "beta": 0.3,
            "dropout": 0.3,
        }
        hidden = config.pop("hidden", 64)
        backbone_config = small_backbone(hidden, config.pop("layers", 2))
        model = SETRecModel(SETRecConfig(**{**scratch, "text_config": backbone_config, **config, **own}))
    else:
        model = SETRecModel.from_backbone(backbone, **{**config, **own})
    if crowding > 0:
        lean(model, crowding)
    trainer = SETRecTrainer(
        model,
        run_arguments(output, chosen, split, arguments),
        features=features,
        sequences=split.training,
        validation=split.validation if len(split.validation) else None,
        catalog_size=size,
        negatives=negatives_of(chosen, size),
        cold_share=cold_share,
        keep=keep,
    )
    kept = {"keep": keep} if keep else {}
    report = finish(trainer, output, chosen, resume, lambda: {**trainer.choose(), **kept, **circumstances(domain, backbone)})
    if trainer.is_world_process_zero():
        processor.save_pretrained(output)
    trainer.accelerator.wait_for_everyone()
    return report


def with_cf(processor: SETRecProcessor, folder: Path, split: Split) -> SETRecProcessor:
    """Returns a processor with the CF vectors of a SASRec, for the items that occur in training.

    Raises:
        ValueError: when the SASRec was trained on another catalogue.
    """
    tokenizer, catalog = SASRecModel.from_pretrained(folder, dtype=torch.float32), processor.catalog
    if tokenizer.config.catalog_fingerprint != catalog.fingerprint:
        raise ValueError(f"The SASRec in {folder} was trained on another catalogue than {catalog!r}: train one on this catalogue.")
    return processor.with_cf(tokenizer.item_vectors().numpy(), split.popularity(len(catalog)) > 0)


def lean(model: SETRecModel, weight: float) -> None:
    """Sets the prior against crowded items: as if `weight` x the crowding were taken off the cosine of query and item."""
    config = model.config
    against = torch.zeros(config.semantic_size)
    # A slot's likeness is 1 / sqrt(N) at the most when N slots share a unit vector.
    top = config.scale * config.beta**config.has_cf * (config.semantic_tokens**0.5 if config.normalize == "slot" else 1.0)
    against[-1] = -weight * top / float(CROWDING)
    model.set_prior(against)


def run_arguments(output: str | Path, chosen: Settings, split: Split, more: dict[str, Any] | None = None) -> TrainingArguments:
    """The arguments of a run over a split's training sequences, whose checkpoints go to a folder in `output`."""
    assert chosen.epochs is not None
    assert chosen.batch is not None
    assert chosen.rate is not None
    together = chosen.batch * processes.count() * int((more or {}).get("gradient_accumulation_steps", 1))
    steps = math.ceil(int((split.training.lengths >= 2).sum()) / together)
    blind = {} if len(split.validation) else {"eval_strategy": "no", "load_best_model_at_end": False}
    return training_arguments(
        Path(output) / CHECKPOINTS,
        epochs=chosen.epochs,
        batch=chosen.batch,
        rate=chosen.rate,
        steps_per_epoch=steps,
        seed=chosen.seed,
        every=chosen.every,
        **{**(more or {}), **blind},
    )


def negatives_of(chosen: Settings, size: int) -> int:
    """All items when the catalogue is not much larger than the sample."""
    assert chosen.negatives is not None
    return 0 if size <= 2 * chosen.negatives else chosen.negatives


def refuse_empty(training: Sequences) -> None:
    """Raises a ValueError when no user has anything to learn from."""
    if not (training.lengths >= 2).any():
        raise ValueError(
            "No user has two training items, so there is nothing to learn from: give longer histories (four items each, where the last two "
            "are kept for validation and test)."
        )


def finish(trainer: NextItemTrainer, output: Path, chosen: Settings, resume: bool, after: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Trains, does what comes `after` (its result joins the report), saves the model and its report, and drops the checkpoints."""
    clock = Clock()
    run(trainer, resume, clock)
    more = after()
    model: Any = trainer.model
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    validation = trainer.rank_validation() if trainer.validation is not None else {}
    if trainer.is_world_process_zero():
        model.save_pretrained(output, state_dict=weights)
    report = {
        "settings": asdict(chosen),
        **clock.spent(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": validation,
        "curve": curve_of(trainer),
        **more,
    }
    if trainer.is_world_process_zero():
        (output / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return report


def circumstances(domain: Domain, backbone: str | None = None) -> dict[str, Any]:
    """What a model card has to say of a run besides its numbers: the command, the data with their terms, the machine."""
    data = {"name": domain.name, "users": len(domain), "items": len(domain.catalog), "license": domain.catalog.license}
    found = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": data | {"interactions": len(domain.sequences.items), "fingerprint": domain.catalog.fingerprint},
        "hardware": hardware(),
    }
    return found | ({} if backbone is None else {"backbone": backbone})


def hardware() -> str:
    """The machine in words: its GPUs, else how many threads of which processor were used."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {name}"


def curve_of(trainer: NextItemTrainer) -> list[dict[str, float]]:
    """The validations of a run, in order."""
    log = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    return [{"epoch": entry["epoch"], "hr@10": entry["eval_hr@10"], "ndcg@10": entry["eval_ndcg@10"]} for entry in log]
