"""What test_distributed.py runs, alone or under torchrun: both recipes, then everything that a checkpoint is asked for.

python tests/distributed_worker.py FOLDER BATCH [slow | apart]

slow: SETRec alone, every step noted and drawn out, a checkpoint every 4 steps, resumed where there is one. apart: gradients stay apart.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from conftest import FakeEncoder
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from prepare_data import synthetic_domain

from genrec_hub import processes
from genrec_hub.evaluation import evaluate
from genrec_hub.grounding import top_k_of_shares
from genrec_hub.modeling_sasrec import SASRecModel
from genrec_hub.modeling_setrec import SETRecModel
from genrec_hub.pipeline import TASK, RecommendationPipeline
from genrec_hub.processing_setrec import SETRecProcessor
from genrec_hub.recipes import Settings, small_backbone, train_sasrec, train_setrec
from genrec_hub.training import SETRecTrainer

USERS, ITEMS = 61, 45
"""An odd number of users: the last batch of an epoch is not full."""
PLAIN = {"lr_scheduler_type": "constant", "weight_decay": 0.0, "warmup_steps": 0}


def train_one(domain, folder: Path, settings: Settings, resume: bool = False, arguments: dict | None = None, **more) -> None:
    """A SETRec with dropout 0."""
    train_setrec(
        domain,
        folder / "setrec",
        settings,
        resume,
        encoder=FakeEncoder(),  # type: ignore[arg-type]
        arguments={**PLAIN, **(arguments or {})},
        dropout=0.0,
        semantic_tokens=2,
        semantic_widths=(12,),
        text_config=small_backbone(32, 1, 0.0),
        **more,
    )


def watched(folder: Path, mode: str) -> list[torch.nn.Module]:
    """Notes (and draws out) every step of SETRec's training, or keeps gradients apart; the list will hold the trained model."""
    plain, live = SETRecTrainer.training_step, []

    def step(self, model, *arguments, **named) -> torch.Tensor:
        live[:] = [self.model]
        if mode == "apart":
            with model.no_sync():
                return plain(self, model, *arguments, **named)
        if processes.number() == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{self.state.global_step}\n")
        time.sleep(0.15)
        return plain(self, model, *arguments, **named)

    SETRecTrainer.training_step = step  # type: ignore[method-assign]
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


def main() -> None:
    folder, batch = Path(sys.argv[1]), int(sys.argv[2])
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    processes.join()
    assert processes.count() == expected
    domain = synthetic_domain(USERS, ITEMS, 0)
    if len(sys.argv) > 3:
        (folder / f"pid-{processes.number()}").write_text(str(os.getpid()))
        live = watched(folder, sys.argv[3])
        often = {"save_steps": 4, "eval_steps": 4}
        if sys.argv[3] == "apart":  # the best checkpoint would make them one again
            often = {"eval_strategy": "no", "load_best_model_at_end": False}
        train_one(domain, folder, Settings(epochs=3, batch=batch, rate=1e-3, negatives=8, seed=1), True, often, cf=False)
        weights = {f"live.{name}": values.detach().clone() for name, values in live[0].state_dict().items()}
        save_file(weights, folder / f"result-{processes.number()}.safetensors")
        (folder / f"result-{processes.number()}.json").write_text("{}")
        return
    settings = Settings(epochs=2, batch=batch, rate=1e-3, negatives=8, seed=1)
    train_sasrec(domain, folder / "cf", settings, dropout=0.0, hidden_size=16)
    train_one(domain, folder, settings, sasrec=folder / "cf")
    sasrec, setrec = SASRecModel.from_pretrained(folder / "cf"), SETRecModel.from_pretrained(folder / "setrec").eval()
    tensors, told = ask(domain, setrec, folder)
    weights = {
        f"{name}.{key}": value for name, model in (("sasrec", sasrec), ("setrec", setrec)) for key, value in model.state_dict().items()
    }
    save_file({**weights, **tensors}, folder / f"result-{processes.number()}.safetensors")
    (folder / f"result-{processes.number()}.json").write_text(json.dumps({**told, "processes": processes.count()}))


if __name__ == "__main__":
    main()
