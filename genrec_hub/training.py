"""Training: Trainer subclasses for SASRec and SETRec, fed with `batches` and seeded negatives.

Batches hold rows of the catalogue; features are looked up on the model's device. Validation ranks the whole catalogue, the best
checkpoint by NDCG@10 is kept, and an interrupted run resumes from its last checkpoint.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from . import processes
from .batches import EpochOrder, LengthBucketSampler, TrainingSequences, collate, own_candidates
from .domain import Cases, Sequences
from .metrics import hit_rate, ndcg, target_ranks
from .modeling_sasrec import SASRecModel
from .modeling_setrec import SETRecModel
from .timing import Clock

logger = logging.getLogger(__name__)

BETAS = tuple(float(beta) for beta in np.round(np.arange(0, 1.01, 0.05), 2))
"""Weights of the semantic tokens that validation chooses from."""
TENTHS = BETAS[::2]
SPENT = "spent.json"
"""In a checkpoint of an unfinished run: what its clock has shown."""


class NextItemTrainer(Trainer):
    """What both systems share: sequences in, candidates per step, ranked validation.

    Args:
        sequences: training sequences (rows of the catalogue).
        validation: cases for choosing the checkpoint, repeats left out where anything else is; a seeded sample of at most `max_validation`.
        negatives: items drawn per step besides the batch's own targets; 0 = the whole catalogue.
        popular_negatives: draw from the interactions instead of evenly from the items that occur in them.
        catalog_size: V.
        max_items: history items of a training sequence, the last ones.
        max_validation: validation cases that are ranked.
        domains: (V,) domain of every item when several catalogues stand one behind the other: a batch and its negatives are of one domain.
        quota: sequences of a domain in one epoch, at the most.
    """

    opening = True
    """Whether the first item of a sequence is a target, to be told from nothing."""
    positions = 2560
    """Positions (users x columns) whose graph is held at a time: a process on Beauty then stays at about 2 GiB."""

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        sequences: Sequences,
        validation: Cases | None,
        catalog_size: int,
        negatives: int,
        popular_negatives: bool = False,
        max_items: int = 50,
        max_validation: int = 5000,
        domains: np.ndarray | None = None,
        quota: int | None = None,
        **more: Any,
    ) -> None:
        processes.join()
        if args.world_size != processes.count():
            raise RuntimeError(f"The Trainer trains with {args.world_size} processes, but {processes.count()} have met.")
        self.validation = None
        if validation is not None:
            fresh, _ = validation.asked()  # what has been bought is not recommended, here as in `evaluate`
            self.validation = (fresh if len(fresh) else validation).sample(max_validation, args.seed)
        self.catalog_size, self.negatives, self.quota = catalog_size, negatives, quota
        self.domains = np.zeros(catalog_size, np.int64) if domains is None else domains
        drawn = sequences.items if popular_negatives else np.unique(sequences.items)
        self.pools = [torch.from_numpy(drawn[self.domains[drawn] == domain]) for domain in range(self.domains.max(initial=0) + 1)]
        data = TrainingSequences(sequences, max_items + 1)
        super().__init__(model, args, train_dataset=data, eval_dataset=data, data_collator=partial(collate, opening=self.opening), **more)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBucketSampler:  # type: ignore[type-arg]
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        domains = self.domains[data.sequences.items[data.sequences.offsets[data.users]]]
        several = self.args.world_size
        sampler = LengthBucketSampler(
            data.lengths, self.args.train_batch_size * several, self.args.seed, domains, self.quota, filled=several > 1
        )
        self.add_callback(EpochOrder(sampler))
        return sampler

    def draw_candidates(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the sorted rows that a step contrasts with: targets of all processes and negatives seeded by the global step."""
        if not self.negatives:
            return torch.arange(self.catalog_size, device=labels.device)
        targets = labels[labels >= 0]
        if self.args.world_size > 1:
            gathered = self.accelerator.gather(self.accelerator.pad_across_processes(targets, pad_index=-1))
            targets = gathered[gathered >= 0]
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        pool = self.pools[self.domains[int(targets[0])]]
        drawn = pool[torch.randint(len(pool), (self.negatives,), generator=generator)]
        return torch.unique(torch.cat([targets, drawn.to(targets.device)]))

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Goes through a batch of long histories in parts, a backward each: the same gradient in memory that does not grow with length.

        Processes may have different numbers of parts: gradients travel with the last one. Where weights are cut up and travel with every
        forward, a batch stays whole.
        """
        items, labels = inputs["items"], inputs["labels"]
        parts = self.parts(items, labels)
        if len(parts) == 1 or self.cut_up or num_items_in_batch is None:
            return super().training_step(model, inputs, num_items_in_batch)
        candidates = self.draw_candidates(labels)
        losses = []
        for number, (own, targets) in enumerate(parts, 1):
            part = {"items": own, "labels": targets, "candidates": candidates}
            with self.accelerator.no_sync(model) if number < len(parts) else nullcontext():
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def parts(self, items: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The parts of a batch of at most `positions` columns in all. Shape: items, labels (B, L) -> pairs (b, L)."""
        size = max(1, self.positions // max(1, items.shape[1]))
        return list(zip(items.split(size), labels.split(size), strict=True))

    @property
    def cut_up(self) -> bool:
        """Whether each process holds a part of the weights only, so that all have to run the model equally often."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Draws the step's candidates, unless the step has them, looks features up and runs the model."""
        items, labels = inputs["items"], inputs["labels"]
        candidates = inputs["candidates"] if "candidates" in inputs else self.draw_candidates(labels)
        places = torch.where(labels >= 0, torch.searchsorted(candidates, labels.clamp(min=0)), labels)
        output = model(
            **self.model_inputs(items, candidates),
            labels=places,
            own=own_candidates(items, labels, candidates),
            num_items_in_batch=num_items_in_batch,
        )
        # The Trainer averages over processes; the loss is already divided by the targets of all of them.
        loss = output.loss * (self.args.world_size if num_items_in_batch is not None else 1)
        return (loss, output) if return_outputs else loss

    def model_inputs(self, items: torch.Tensor, candidates: torch.Tensor) -> dict[str, Any]:
        """Turns rows into what the model reads."""
        raise NotImplementedError(f"{type(self).__name__} does not say how rows become inputs.")

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Scores the whole catalogue. Shape: B histories -> (B, V)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how histories are scored.")

    def rank_validation(self) -> dict[str, float]:
        """HR@10 and NDCG@10 on the validation cases, whole catalogue, seen items excluded; several processes rank a share each."""
        model, cases = self.model, self.validation
        assert model is not None
        assert cases is not None
        training = model.training
        model.eval()
        own = range(len(cases)) if self.cut_up else processes.share(len(cases))
        ranks = []
        for start in range(own.start, own.stop, 256):
            rows = range(start, min(start + 256, own.stop))
            histories, targets = [cases.histories[r] for r in rows], [cases.targets[r] for r in rows]
            ranks += target_ranks(self.scores(histories), targets, histories)
        model.train(training)
        if len(own) < len(cases):
            ranks = [np.array(places, np.int64) for places in processes.gathered([places.tolist() for places in ranks])]
        return {"hr@10": float(hit_rate(ranks, 10).mean()), "ndcg@10": float(ndcg(ranks, 10).mean())}

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Ranks the validation cases; called by the Trainer at its evaluation steps."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.rank_validation().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class SASRecTrainer(NextItemTrainer):
    """Trains a `SASRecModel` on every position of the sequences; it has no answer to an empty history."""

    model: SASRecModel
    opening = False

    def model_inputs(self, items: torch.Tensor, candidates: torch.Tensor) -> dict[str, Any]:
        """Shape: items (B, L), candidates (C,) -> the arguments of `SASRecModel.forward`."""
        return {"item_ids": items[:, :-1] + 1, "candidates": candidates if self.negatives else None}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As the parent's, with the label of an item beside the item before it."""
        shifted = {**inputs, "labels": inputs["labels"][:, 1:]}
        return super().compute_loss(model, shifted, return_outputs, num_items_in_batch)

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        return self.model.score(histories)


class SETRecTrainer(NextItemTrainer):
    """Trains a `SETRecModel` on every prefix of the sequences, the empty one included, in packed forwards.

    Args:
        features: semantic (V, S), and with a CF slot cf (V, C), has_cf (V,).
        validation_features: those of the validation cases' catalogue, when it is another one.
        cold_share: share of the items, drawn anew in every step, that are seen as if they had no interactions, so that the semantic tokens
            learn to do without the CF token (DropoutNet, Volkovs et al. 2017).
        keep: share of the untrained weights in those that are validated and, after `settle`, in the finished ones: what a model knows of
            texts before its first step carries over to items that nobody has bought, what it learns carries over less (WiSE-FT, Wortsman
            et al. 2022).
    """

    model: SETRecModel

    def __init__(
        self,
        model: SETRecModel,
        args: TrainingArguments,
        *,
        features: Mapping[str, torch.Tensor],
        validation_features: Mapping[str, torch.Tensor] | None = None,
        max_items: int | None = None,
        cold_share: float = 0.0,
        keep: float = 0.0,
        **more: Any,
    ) -> None:
        super().__init__(model, args, max_items=max_items or model.config.max_items, **more)
        self.keep = keep
        self.start = {name: values.detach().clone() for name, values in model.state_dict().items()} if keep else {}
        self.features = {name: values.to(args.device) for name, values in features.items()}
        known = features if validation_features is None else validation_features
        self.validation_features = {name: values.to(args.device) for name, values in known.items()}
        self.known, self.cold_share = {**self.features}, cold_share

    def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
        """As the parent's, with a share of the items made cold: a function of seed and global step alone."""
        if self.cold_share and "has_cf" in self.known:
            drawn = np.random.default_rng((self.args.seed, self.state.global_step)).random(self.catalog_size) < self.cold_share
            left = self.known["has_cf"] & ~torch.from_numpy(drawn).to(self.args.device)
            self.features |= {"cf": self.known["cf"] * left[:, None], "has_cf": left}
        return super().training_step(*arguments, **more)

    def model_inputs(self, items: torch.Tensor, candidates: torch.Tensor) -> dict[str, Any]:
        """Shape: items (B, L), candidates (C,) -> the arguments of `SETRecModel.forward`; the last item is only a target."""
        history = items[:, :-1]
        return {
            **{name: values[history.clamp(min=0)] for name, values in self.features.items()},
            "item_mask": history >= 0,
            "packed": True,
            "candidates": {name: values[candidates] for name, values in self.features.items()},
        }

    def scores(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """Shape: B histories -> (B, V)."""
        self._gather()
        return self.model.score(histories, self.validation_features)

    @contextmanager
    def blended(self) -> Iterator[None]:
        """Lends the model the weights that `settle` would give it."""
        learnt = {name: values.detach().clone() for name, values in self.model.state_dict().items()} if self.keep else {}
        self._blend()
        try:
            yield
        finally:
            if learnt:
                self.model.load_state_dict(learnt)

    def settle(self) -> None:
        """Ends a training: the model takes `keep` of its untrained weights back, for good."""
        self._blend()
        self.keep, self.start = 0.0, {}

    def _blend(self) -> None:
        if self.keep:
            own = self.model.state_dict()
            self.model.load_state_dict({name: values.lerp(self.start[name], self.keep) for name, values in own.items()})

    def rank_validation(self) -> dict[str, float]:
        """As the parent's, of the blended weights."""
        with self.blended():
            return super().rank_validation()

    def _gather(self) -> None:
        """Under FSDP, brings the parameters that scoring reads outside of `forward` (autoencoder, CF map) to this process."""
        if hasattr(self.model, "unshard"):
            self.model.unshard()

    def choose(self, cost: float = 0.05) -> dict[str, dict[float, float]]:
        """Ends a training: settles the weights, then what scores alone depend on. Returns the curves of what was chosen.

        Args:
            cost: of items without interactions, see `choose_cold_score`.
        """
        self.settle()
        cold = {"cold_score": self.choose_cold_score(cost)} if self.model.config.cold_score else {}
        return {"beta": self.choose_beta(), **cold}

    def choose_keep(self, grid: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> dict[float, float]:
        """Sets `keep` to the best of a grid by validation NDCG@10, each with the scores that suit it. Returns keep -> NDCG@10.

        With all of its start and beta 1 a fine-tuned model answers much as the one that it came from, so that little is lost where little
        could be learnt.
        """
        before, means = self.keep, {}
        for share in grid:
            self.keep = share
            with self.blended():
                means[share] = max(
                    self._validated(TENTHS, (0.1, 0.3, 0.5) if self.model.config.cold_score else (0.0,)).values(), default=0.0
                )
        if not any(means.values()):  # nobody to validate on
            self.keep = before
            return {}
        self.keep = max(means, key=lambda share: means[share])
        return means

    def choose_beta(self, grid: Sequence[float] = BETAS) -> dict[float, float]:
        """Sets `config.beta` to the best of a grid by validation NDCG@10. Returns beta -> NDCG@10."""
        means = {beta: mean for (beta, _), mean in self._validated(grid, (self.model.config.cold_score,)).items()}
        if any(means.values()):
            self.model.config.beta = max(means, key=lambda beta: means[beta])
        return means

    def choose_cold_score(
        self, cost: float = 0.05, grid: Sequence[float] = (0.05, *TENTHS[1:]), betas: Sequence[float] = TENTHS
    ) -> dict[float, float]:
        """Sets `config.cold_score` to the highest of a grid that costs at most this share of the best validation NDCG@10.

        Each is judged with the beta that suits it. Items without interactions are rare among validation targets and become common later,
        so that the best value on validation is too low for them: they get as much as the others can spare. Returns cold_score -> NDCG@10.
        """
        found = self._validated(betas, grid)
        if not any(found.values()):
            return {}
        means = {float(score): max(mean for (_, own), mean in found.items() if own == score) for score in grid}
        self.model.config.cold_score = max(score for score, mean in means.items() if mean >= (1 - cost) * max(means.values()))
        return means

    def _validated(self, betas: Sequence[float], cold_scores: Sequence[float]) -> dict[tuple[float, float], float]:
        """Validation NDCG@10 by beta and cold_score, of which scores alone depend; none without a CF slot or validation cases.

        Histories are encoded once, and multiplied with the catalogue three times: scores are linear in beta, and those of the CF slot in
        what stands for an absent vector.
        """
        model, cases = self.model.eval(), self.validation
        if not model.config.has_cf or cases is None:
            return {}
        before = model.config.beta, model.config.cold_score
        ranks: dict[tuple[float, float], list[np.ndarray]] = {(float(beta), float(cold)): [] for beta in betas for cold in cold_scores}
        self._gather()
        model.config.cold_score = 1.0  # the index has a column for it
        index = model.index(**self.validation_features)
        for start in range(0, len(cases), 256):
            rows = range(start, min(start + 256, len(cases)))
            histories, targets = [cases.histories[r] for r in rows], [cases.targets[r] for r in rows]
            generated, parts = model.recommend_tokens(histories, self.validation_features), []
            for model.config.beta, model.config.cold_score in ((1.0, 1.0), (0.0, 0.5), (0.0, 1.0)):
                parts.append((model.ground(generated) @ index.T).float().cpu())
            semantic, half, whole = parts
            absent = 2 * (whole - half)
            for (beta, cold), own in ranks.items():
                own += target_ranks(beta * semantic + (1 - beta) * (whole + (cold - 1) * absent), targets, histories)
        model.config.beta, model.config.cold_score = before
        return {pair: float(ndcg(own, 10).mean()) for pair, own in ranks.items()}


def training_arguments(
    output: str | Path, *, epochs: int, batch: int, rate: float, steps_per_epoch: int, seed: int, every: int = 1, **more: Any
) -> TrainingArguments:
    """The arguments of a run: AdamW, cosine rate, evaluation and checkpoint every `every` epochs, the best one kept."""
    steps = max(1, steps_per_epoch * every)
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(100, steps_per_epoch * epochs // 10),
        "max_grad_norm": 1.0,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": steps,
        "save_steps": steps,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "ndcg@10",
        "logging_steps": steps_per_epoch,
        "seed": seed,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": None,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**{**settings, **more})


class _Timekeeper(TrainerCallback):
    """Writes into every checkpoint what the clock shows."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called behind the state, which is written last of what a run goes on from."""
        if processes.first():
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            (folder / SPENT).write_text(json.dumps(self.clock.spent()))


def run(trainer: Trainer, resume: bool, clock: Clock | None = None) -> None:
    """Trains, from the last checkpoint of the output folder when `resume` and there is one; the clock then goes on from there as well."""
    folder, clock = Path(str(trainer.args.output_dir)), clock or Clock()
    last = processes.told(whole_checkpoint(folder)) if resume else None
    if resume:
        logger.info("Resuming from %s" if last else "Nothing to resume in %s: starting anew.", last or folder)
    if last is not None and (Path(last) / SPENT).is_file():
        clock.set(json.loads((Path(last) / SPENT).read_text()))
    if last is None and processes.first():
        for old in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(old)
    processes.wait()
    trainer.add_callback(_Timekeeper(clock))
    trainer.train(resume_from_checkpoint=last)


def whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: what a process was writing when it was killed is no checkpoint.

    The Trainer writes its state last.
    """
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda own: int(own.name.rpartition("-")[2]), reverse=True)
    for own in found:
        try:
            json.loads((own / TRAINER_STATE_NAME).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was not written to its end: the one before it is taken.", own)
        else:
            return str(own)
    return None
