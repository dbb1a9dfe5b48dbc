"""A foundation checkpoint on one domain: adds the CF slot, trains on a share of the users, keeps what it knew of texts.

Dims: N semantic tokens · Q tokens with the CF one · D hidden size · V catalogue size · C CF width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from . import processes
from .checkpoint import REPORT, fetch, refuse_other_protocol
from .configuration_setrec import SETRecConfig
from .domain import Domain, Sequences
from .modeling_setrec import SETRecModel
from .processing_setrec import SETRecProcessor
from .recipes import (
    DEFAULTS,
    Progress,
    Settings,
    circumstances,
    finish,
    negatives_of,
    refuse_empty,
    run_arguments,
    train_sasrec,
    with_cf,
)
from .training import SETRecTrainer

COLD_COST = 0.02
"""Share of the best validation NDCG@10 that items without interactions may cost."""


def few_shot(domain: Domain, share: float, seed: int = 0) -> Domain:
    """Returns a domain with a seeded share of the users and the whole catalogue; a larger share holds the users of a smaller one.

    Args:
        domain: catalogue and interactions.
        share: above 0, at most 1.
        seed: of the draw.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share of the users is {share}: it should lie above 0 and be at most 1 (0.1 for 10 %).")
    count = max(1, round(share * len(domain)))
    users = np.sort(np.random.default_rng(seed).permutation(len(domain))[:count])
    offsets = domain.sequences.offsets
    rows = np.concatenate([np.arange(offsets[user], offsets[user + 1]) for user in users])
    return Domain(
        domain.catalog,
        [domain.users[user] for user in users],
        Sequences.of([domain.sequences[user] for user in users]),
        None if domain.times is None else domain.times[rows],
        None if domain.given is None else domain.given[rows],
        domain.name,
    )


def add_cf_slot(model: SETRecModel, cf_size: int, fingerprint: str, beta: float = 0.5, **config: Any) -> SETRecModel:
    """Returns a copy of a model without a CF slot that has one; the semantic slots keep all their weights.

    What exists per slot (queries, gates, decays, scales) is moved one place up, the CF slot's own starts fresh. A scale of the whole set
    is raised by 1 / beta, which is what the semantic slots now count in the fused score.

    Args:
        model: a model of semantic tokens alone.
        cf_size: C.
        fingerprint: of the catalogue that the CF vectors belong to.
        beta: weight of the semantic tokens to train with.
        **config: further values of `SETRecConfig` that change (dropout, fused_loss, ...).
    """
    if model.config.has_cf:
        raise ValueError("The model has a CF slot already: fine-tune a foundation checkpoint, whose tokens are semantic alone.")
    weights = model.config.slot_weights
    own = {"cf_size": cf_size, "catalog_fingerprint": fingerprint, "beta": beta, "slot_weights": [1.0, *weights] if weights else ()}
    settings = model.config.to_dict()
    settings.pop("transformers_version", None)
    wider = SETRecModel(SETRecConfig(**{**settings, "text_config": model.config.text_config, **config, **own}))
    state = wider.state_dict()
    for name, values in model.state_dict().items():
        there = state[name]
        if there.shape == values.shape:
            there.copy_(values)
        elif there.shape[1:] == values.shape[1:] and len(there) == len(values) + 1:
            there[1:] = values
        elif there.shape[:-1] == values.shape[:-1] and there.shape[-1] == values.shape[-1] + 1:  # rates x slots
            there[..., 1:] = values
        else:
            raise ValueError(f"The weight {name} has the shape {tuple(values.shape)}; with a CF slot it should be {tuple(there.shape)}.")
    if model.config.normalize == "joint":
        state["log_scale"] -= float(np.log(beta))
        if wider.prior is not None:
            state["prior"] /= beta
    return wider


def finetune_setrec(
    model: SETRecModel,
    processor: SETRecProcessor,
    domain: Domain,
    output: str | Path,
    settings: Settings = DEFAULTS,
    resume: bool = False,
    *,
    sasrec: str | Path | None = None,
    progress: Progress | None = None,
    arguments: dict[str, Any] | None = None,
    cold_share: float = 0.15,
    cold_score: float = 0.5,
    **config: Any,
) -> dict[str, Any]:
    """Fine-tunes a foundation checkpoint on a domain's training sequences and saves it with the domain's catalogue.

    How much of the foundation's weights and how much of its scores is kept, validation decides, all of them included: few users teach
    little (WiSE-FT, Wortsman et al. 2022).

    Args:
        model: the foundation model; left as it is.
        processor: its processor, which knows how the model's texts are encoded.
        domain: catalogue and interactions (`few_shot` for a share of them).
        output: folder of the finished checkpoint.
        settings: of the run.
        resume: go on from the last checkpoint in `output`.
        sasrec: folder of a SASRec trained on the same interactions; trained into `output/cf` when None.
        progress: called with (done, total) while texts are encoded.
        arguments: further `TrainingArguments`.
        cold_share: share of the items that every step sees as if they had no interactions, so that items without any are recommended well.
        cold_score: of `SETRecConfig`, what an item without interactions gets in the CF slot while training; validation then chooses. With
            0 it gets nothing there, and little is seen of it.
        **config: of `SETRecConfig`, where it should differ from the foundation's.

    Returns:
        The report that is also written as `training.json`.

    Raises:
        ValueError: when the model is no SETRec or has a CF slot already, or the SASRec was trained on another catalogue.
    """
    processes.join()
    if not isinstance(model, SETRecModel) or model.config.has_cf:
        raise ValueError("Only a SETRec without a CF slot can be fine-tuned here: give a foundation checkpoint such as setrec-foundation.")
    origin = origin_of(model)
    chosen = settings.or_else(epochs=7, batch=128, rate=5e-4, negatives=1024)
    output, size = Path(output), len(domain.catalog)
    split = domain.split(chosen.protocol)
    refuse_empty(split.training)
    refuse_other_protocol(model.checkpoint_folder, domain.catalog.fingerprint, chosen.protocol)
    processor = processor.without_catalog().with_catalog(domain.catalog, progress)
    folder = Path(sasrec) if sasrec is not None else output / "cf"
    if sasrec is None and not (resume and (folder / REPORT).is_file()):
        train_sasrec(domain, folder, few_shot_settings(len(domain), chosen), resume)
    refuse_other_protocol(folder, domain.catalog.fingerprint, chosen.protocol)
    processor = with_cf(processor, folder, split)
    set_seed(chosen.seed)
    features = processor.features
    tuned = add_cf_slot(
        model, features["cf"].shape[1], domain.catalog.fingerprint, **{"cold_score": cold_score, "fused_loss": 1.0, **config}
    )
    trainer = SETRecTrainer(
        tuned,
        run_arguments(output, chosen, split, arguments),
        features=features,
        sequences=split.training,
        validation=split.validation if len(split.validation) else None,
        catalog_size=size,
        negatives=negatives_of(chosen, size),
        cold_share=cold_share,
        keep=0.5,
    )
    report = finish(
        trainer,
        output,
        chosen,
        resume,
        lambda: {"keep": trainer.choose_keep(), **trainer.choose(COLD_COST), **origin, **circumstances(domain)},
    )
    if trainer.is_world_process_zero():
        processor.save_pretrained(output)
    trainer.accelerator.wait_for_everyone()
    return report


def origin_of(model: SETRecModel) -> dict[str, Any]:
    """What the report of a fine-tuned model says of where it comes from: the foundation, and the data whose terms its weights carry."""
    name = model.name_or_path
    if not name:
        return {}
    path = fetch(name) / REPORT
    report = json.loads(path.read_text()) if path.is_file() else {}
    own = report.get("data")
    train = {**report.get("train", {}), **({own["name"]: own} if own else {})}
    return {"foundation": Path(name).name if Path(name).is_dir() else name, "train": train}


def few_shot_settings(users: int, chosen: Settings) -> Settings:
    """How long the SASRec of few users trains: smaller batches and more epochs, so that it takes some two thousand steps at the least."""
    batch = 256 if users >= 10_000 else 64
    epochs = max(24, min(100, round(2000 * batch / max(1, users))))
    return Settings(epochs=epochs, batch=batch, every=max(1, epochs // 24), seed=chosen.seed, protocol=chosen.protocol)
