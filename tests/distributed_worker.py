"""What test_distributed.py runs, alone or under torchrun: both recipes, then everything that a checkpoint is asked for.

python tests/distributed_worker.py FOLDER BATCH setrec idgenrec scripts commands     # any of them, one after the other
python tests/distributed_worker.py FOLDER BATCH cut | slow | slow-idgenrec | apart

setrec: SASRec and SETRec. idgenrec: all phases of IDGenRec. scripts: the two pretraining scripts. commands: `genrec train` and
`genrec evaluate`. cut: SETRec on a tiny Qwen2, whose weights `accelerate launch --config_file configs/fsdp.yaml` cuts up. slow: SETRec
alone, every step noted and drawn out, a checkpoint every 4 steps, resumed where there is one; slow-idgenrec: the same of a generator and
a recommender of IDs. apart: gradients stay apart.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from conftest import FakeEncoder
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import pretrain_idgenrec
import pretrain_setrec
from prepare_data import synthetic_domain

from genrec_hub import processes
from genrec_hub.cli import app
from genrec_hub.evaluation import evaluate
from genrec_hub.grounding import top_k_of_shares
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.pipeline import TASK, RecommendationPipeline, load
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.recipes import Settings, small_backbone, train_sasrec, train_setrec
from genrec_hub.recipes_idgenrec import train_idgenrec
from genrec_hub.training import NextItemTrainer, SETRecTrainer
from genrec_hub.training_idgenrec import IDGenRecTrainer, PackedRecommenderTrainer, WriterTrainer

USERS, ITEMS = 61, 45
"""An odd number of users: the last batch of an epoch is not full."""
PLAIN = {"lr_scheduler_type": "constant", "weight_decay": 0.0, "warmup_steps": 0}
WORDS = {"hidden": 32, "layers": 1, "vocabulary": 400, "writer_epochs": 1, "groups": 2, "beams": 10, "dropout": 0.0}
"""A small IDGenRec with dropout 0."""


def train_one(domain, folder: Path, settings: Settings, resume: bool = False, arguments: dict | None = None, **more) -> None:
    """A SETRec with dropout 0."""
    train_setrec(
        domain,
        folder / "setrec",
        settings,
        resume,
        encoder=FakeEncoder(),  # type: ignore[arg-type]
        arguments={**PLAIN, **(arguments or {})},
        **{"dropout": 0.0, "semantic_tokens": 2, "semantic_widths": (12,), "text_config": small_backbone(32, 1, 0.0), **more},
    )


def watched(folder: Path, mode: str) -> list[torch.nn.Module]:
    """Notes (and draws out) every step of a training, or keeps gradients apart; the list will hold the trained model."""
    live: list[torch.nn.Module] = []

    def watch(kind: type[Trainer]) -> None:
        plain = kind.training_step

        def step(self, model, *arguments, **named) -> torch.Tensor:
            live[:] = [self.model]
            if mode == "apart":
                with model.no_sync():
                    return plain(self, model, *arguments, **named)
            if processes.first():
                with (folder / "steps").open("a") as file:
                    file.write(f"{self.state.global_step}\n")
            time.sleep(0.15)
            return plain(self, model, *arguments, **named)

        kind.training_step = step  # type: ignore[method-assign]

    for kind in (SETRecTrainer, WriterTrainer, PackedRecommenderTrainer):
        watch(kind)
    return live


def ask(domain, setrec: SETRecModel, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Index, grounding, recommendations and evaluation of one checkpoint."""
    cf = SASRecModel.from_pretrained(folder / "cf").item_vectors().numpy()
    processor = SETRecProcessor(domain.catalog, encoder=FakeEncoder()).with_cf(cf)
    index, own = processor.index(setrec), processes.share(ITEMS)
    known = domain.split("leave-one-out").cases("validation").histories
    histories = [known[user] for user in range(len(known))]
    seen = [history.tolist() for history in histories]
    allowed = torch.arange(ITEMS) % 3 > 0
    queries = setrec.ground(setrec.recommend_tokens(histories, processor.features))
    scores, rows = top_k_of_shares(queries, index[own.start : own.stop], own.start, 10, seen, allowed[own.start : own.stop])
    pipe = RecommendationPipeline(model=setrec, processor=processor, task=TASK)
    lines = [[domain.catalog[row].item_id for row in history[-3:]] for history in histories[:9]]
    answers = pipe.recommend_all(lines, batch_size=2, top_k=4)
    vectors = processor.features["semantic"].numpy()
    result = evaluate(pipe, domain, vectors=vectors, batch_size=8, bootstrap=20, stage="validation")
    told = {name: result[name] for name in ("metrics", "groups", "users", "ci")}
    return {"index": index.contiguous(), "scores": scores, "rows": rows}, {"answers": answers, "evaluation": told}


def sets(folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """SASRec and SETRec, then everything that their checkpoint is asked for."""
    NextItemTrainer.positions = 20  # batches in several parts, not equally many in every process
    domain = synthetic_domain(USERS, ITEMS, 0)
    settings = Settings(epochs=2, batch=batch, rate=1e-3, negatives=8, seed=1)
    train_sasrec(domain, folder / "cf", settings, dropout=0.0, hidden_size=16)
    train_one(domain, folder, settings, sasrec=folder / "cf")
    sasrec, setrec = SASRecModel.from_pretrained(folder / "cf"), SETRecModel.from_pretrained(folder / "setrec").eval()
    tensors, told = ask(domain, setrec, folder)
    trained = (("sasrec", sasrec), ("setrec", setrec))
    return tensors | {f"{name}.{key}": value for name, model in trained for key, value in model.state_dict().items()}, told


def words(folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """All phases of IDGenRec, then IDs for another catalogue, recommendations and evaluation."""
    IDGenRecTrainer.positions = 24  # batches in several parts, not equally many in every process
    domain = synthetic_domain(37, 30, 0)
    settings = Settings(epochs=2, batch=batch, rate=1e-3, seed=1)
    report = train_idgenrec(domain, folder / "out", settings, strategy="alternate", arguments=PLAIN, **WORDS)
    pipe = load(folder / "out")
    other = synthetic_domain(5, 23, 7).catalog
    lines = [[domain.catalog[row].item_id for row in (row, row + 3)] for row in range(7)]
    answers = pipe.recommend_all(lines, batch_size=2, top_k=4)
    for answer in (answer for own in answers for answer in own):  # a share is a quotient of small differences of scores
        answer["because"] = answer["because"]["item"]["item_id"]  # type: ignore[index]
    result = evaluate(pipe, domain, vectors=torch.eye(30).numpy(), batch_size=8, bootstrap=20, stage="validation")
    told = {name: result[name] for name in ("metrics", "groups", "users", "ci")}
    ids = {name: pipe.with_catalog(own).processor.identifiers.texts for name, own in (("own", pipe.catalog), ("other", other))}
    phases = [{key: phase[key] for key in ("phase", "losses", "validation") if key in phase} for phase in report["phases"]]
    weights = {name: values.clone() for name, values in pipe.model.state_dict().items()}
    return weights, {"answers": answers, "evaluation": told, "ids": ids, "phases": phases}


def scripts(folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Both pretraining scripts on two small domains, chosen on a third, without the users of a fourth."""
    if processes.first():
        for number, name in enumerate(("one", "two", "held", "test")):
            domain = synthetic_domain(24 + 8 * number, 20 + number, number)
            users = [user if user == "user-3" else f"{name}-{user}" for user in domain.users]
            type(domain)(domain.catalog, users, domain.sequences, domain.times).save(folder / "data" / name)
    processes.wait()
    shared = ["--source", str(folder / "data"), "--train", "one,two", "--validation", "held", "--without-users", "test"]
    shared += ["--epochs", "2", "--batch", str(batch), "--catalog", str(folder / "data" / "held" / "items.parquet")]
    plain = {"dropout": 0.0, "hidden": 32, "layers": 1}
    sizes = {
        pretrain_setrec: ["--spelling", "0", "--config", json.dumps({**plain, "attention_dropout": 0.0, "semantic_tokens": 12})],
        pretrain_idgenrec: [
            *("--vocabulary", "400", "--hidden", "32", "--layers", "1", "--writer-epochs", "1"),
            *("--config", json.dumps({"dropout": 0.0, "groups": 2, "beams": 8})),
        ],
    }
    weights, told = {}, {}
    for script, more in sizes.items():
        name = script.__name__
        sys.argv = [name, *shared, *more, "--output", str(folder / name)]
        script.main()
        weights |= {f"{name}.{key}": values for key, values in load_file(folder / name / "model.safetensors").items()}
        report = json.loads((folder / name / "training.json").read_text())
        told[name] = {key: report[key] for key in ("train", "untrained", "validation", "curve")}
    return weights, told


def commands(folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """What two commands write to stdout; the first process's answer is the only one."""
    domain = synthetic_domain(30, 25, 0)
    if processes.first():
        domain.save(folder)
    processes.wait()
    files = [f"--{name}={folder / name}.parquet" for name in ("items", "interactions")]
    cf = folder / "cf"
    lines = (
        ["train", "sasrec", *files, "--epochs=1", "--negatives=0", f"--output={cf}", f"--batch={batch}"],
        ["evaluate", *files, "--model=none", f"--sasrec={cf}"],
    )
    told = {}
    for line in lines:
        with redirect_stdout(StringIO()) as written:
            app([*line, "--json"], standalone_mode=False)
        assert processes.first() == bool(written.getvalue())
        told[line[0]] = processes.told(json.loads(written.getvalue() or "null"))
    return {}, told


def cut(folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """SETRec on a Qwen2; several processes are taken for GPUs, since accelerate cuts weights up for those alone."""
    tiny = Qwen2Config(vocab_size=1, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
    tiny.num_hidden_layers, tiny.use_cache = 2, False
    kinds = set()
    plain = SETRecTrainer.training_step

    def step(self, *arguments, **named) -> torch.Tensor:
        kinds.update(type(parameter).__name__ for parameter in self.model_wrapped.parameters())
        return plain(self, *arguments, **named)

    SETRecTrainer.training_step = step  # type: ignore[method-assign]
    train_one(
        synthetic_domain(USERS, ITEMS, 0), folder, Settings(epochs=2, batch=batch, rate=1e-3, negatives=8), cf=False, text_config=tiny
    )
    report = json.loads((folder / "setrec/training.json").read_text())
    weights = load_file(folder / "setrec/model.safetensors")
    return weights, {"validation": report["validation"], "curve": report["curve"], "parameters": report["parameters"], "kinds": list(kinds)}


def fragile(folder: Path, batch: int, mode: str) -> dict[str, torch.Tensor]:
    """Trains, from a checkpoint where there is one, and returns the weights as they are in this process."""
    NextItemTrainer.positions = 20
    domain, live = synthetic_domain(USERS, ITEMS, 0), watched(folder, mode)
    often = {"save_steps": 4, "eval_steps": 4}
    if mode == "apart":  # the best checkpoint would make them one again
        often = {"eval_strategy": "no", "load_best_model_at_end": False}
    settings = Settings(epochs=3, batch=batch, rate=1e-3, negatives=8, seed=1)
    if mode == "slow-idgenrec":
        train_idgenrec(domain, folder / "out", settings, resume=True, **{**WORDS, "writer_epochs": 12, "arguments": {**PLAIN, **often}})
    else:
        train_one(domain, folder, settings, True, often, cf=False)
    return {f"live.{name}": values.detach().clone() for name, values in live[0].state_dict().items()}


def main() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    processes.join()
    assert processes.count() == expected
    parts = {"setrec": sets, "idgenrec": words, "scripts": scripts, "commands": commands, "cut": cut}
    for part in sys.argv[3:]:
        own = folder / part
        if part in parts:
            tensors, told = parts[part](own, batch)
        else:
            (folder / f"pid-{processes.number()}").write_text(str(os.getpid()))
            tensors, told = fragile(folder, batch, part), {}
        own.mkdir(exist_ok=True)
        save_file({name: values.contiguous() for name, values in tensors.items()}, own / f"result-{processes.number()}.safetensors")
        (own / f"result-{processes.number()}.json").write_text(json.dumps({**told, "processes": processes.count()}))


if __name__ == "__main__":
    main()
