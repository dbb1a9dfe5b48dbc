"""Two processes are one (design decision 11): the same weights, index, recommendations and figures; and a killed run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from typer.testing import CliRunner

from genrec_hub import processes
from genrec_hub.batches import LengthBucketSampler
from genrec_hub.cli import app
from genrec_hub.domain import Domain
from genrec_hub.evaluation import evaluate
from genrec_hub.grounding import merge, top_k, top_k_of_shares

CONFIGS = Path(__file__).parent.parent / "configs"
WORKER = Path(__file__).parent / "distributed_worker.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(folder, *arguments, several=False, launcher=TORCHRUN):
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(launcher if several else []), str(WORKER), str(folder), *map(str, arguments)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(process, folder):
    assert process.wait(timeout=600) == 0, (folder / "log").read_text()[-3000:]


def results(folder, part, processes):
    tensors = [load_file(folder / part / f"result-{number}.safetensors") for number in range(processes)]
    return tensors, [json.loads((folder / part / f"result-{number}.json").read_text()) for number in range(processes)]


def compared(one, two, part):
    """What one process says; each of two says the same, and their tensors are its tensors to 1e-5."""
    (tensors,), (told,) = results(one, part, 1)
    assert told.pop("processes") == 1
    for own, tale in zip(*results(two, part, 2), strict=True):
        assert tale.pop("processes") == 2
        assert not tensors or far(tensors, own) < (1e-5,)
        assert near(tale, told)
    return tensors, told


def far(one, other):
    """The largest difference, by name."""
    assert one.keys() == other.keys()
    return max((float((one[name].double() - other[name].double()).abs().max()), name) for name in one)


def near(one, other):
    """JSON values, numbers to 1e-5."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == pytest.approx(other, abs=1e-5) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Everything by one process, and by two: global batches of 8 in both. One launch each, since most of a launch is imports."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    parts = ("setrec", "idgenrec", "scripts")
    alone = start(one, 8, *parts)
    finish(start(two, 4, *parts, "commands", several=True), two)
    finish(alone, one)
    return one, two


def test_two_processes_are_one(both):
    """SASRec and SETRec from the first step to the last table; 61 users in batches of 8, so the last batch has empty places."""
    tensors, told = compared(*both, "setrec")
    assert far(tensors, {**tensors, "index": tensors["index"] + 1})[0] == pytest.approx(1)
    assert len(told["answers"]) == 9
    assert told["evaluation"]["users"] > 50


@pytest.mark.parametrize("part", ["idgenrec", "scripts"])
def test_two_processes_are_one_in(both, part):
    """IDGenRec's phases, the IDs that they share out, and the pretraining scripts: 37 users, 30 texts."""
    assert compared(*both, part)[0]


def test_the_command_line_answers_once(both):
    """Two processes train, evaluate and write one answer, that of one process."""
    folder = both[1] / "commands"
    told, same = results(both[1], "commands", 2)[1]
    assert told == same
    assert told["train"] == json.loads((folder / "cf/training.json").read_text())
    alone = evaluate(None, Domain.from_folder(folder), sasrec=folder / "cf")
    for name in ("baselines", "groups", "users"):
        assert near(told["evaluate"][name], json.loads(json.dumps(alone[name])))
    assert told["evaluate"]["baselines"]["sasrec"]["NDCG@10"] > 0


def test_what_is_one_processs_work_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(app, ["push", "somewhere", "a/b"])
    assert done.exit_code != 0
    assert "genrec push is the work of one process" in " ".join(done.output.split())


def test_processes_must_be_as_many_as_promised(monkeypatch):
    assert (processes.count(), processes.number(), processes.share(5)) == (1, 0, range(5))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"there are 2 processes \(WORLD_SIZE\), but 1"):
        processes.join()


@pytest.mark.parametrize("several", [1, 2, 3, 7])
def test_shares_are_everything_once(monkeypatch, several):
    monkeypatch.setattr(processes, "count", lambda: several)
    for rows in (0, 1, 6, 7, 50):
        shares = []
        for number in range(several):
            monkeypatch.setattr(processes, "number", lambda number=number: number)
            shares.append(processes.share(rows))
        assert [row for share in shares for row in share] == list(range(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_best_of_shares_are_the_best():
    """Whole numbers: many scores are equal, and equal ones come by rising row."""
    torch.manual_seed(0)
    queries, index = torch.randint(-2, 3, (4, 3)).float(), torch.randint(-2, 3, (90, 3)).float()
    excluded = [[0, 40, 89], [], [50], list(range(85))]
    for k in (1, 7, 100):
        whole = top_k(queries, index, k, excluded)
        for cuts in ([45], [10, 20, 85], [88]):
            bounds = [0, *cuts, 90]
            parts = []
            for low, high in pairwise(bounds):
                own = [[row - low for row in rows if low <= row < high] for rows in excluded]
                scores, rows = top_k(queries, index[low:high], k, own)
                parts.append((scores, torch.where(rows < 0, rows, rows + low)))
            scores, rows = merge([scores for scores, _ in parts], [rows for _, rows in parts], k)
            assert torch.equal(scores, whole[0])
            assert torch.equal(rows.masked_fill(scores == -torch.inf, -1), whole[1])
        alone = top_k_of_shares(queries, index, 0, k, excluded)
        assert torch.equal(alone[1][:, : whole[1].shape[1]], whole[1])


@pytest.mark.parametrize("users", [16, 17, 23])
def test_every_process_gets_whole_batches(users):
    lengths = np.arange(users) % 7
    alone, several = (LengthBucketSampler(lengths, 8, 0, filled=filled) for filled in (False, True))
    rows = list(several)
    assert len(rows) == len(several) == -(-users // 8) * 8
    assert [row for row in rows if row >= 0] == list(alone)


# Large backbones


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_accelerate_reads_the_configurations(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == name.upper()
    assert config.mixed_precision == "bf16"
    own = getattr(config, f"{name}_config")
    assert own == {"fsdp": own | {"fsdp_version": 2}, "deepspeed": own | {"zero_stage": 2}}[name]
    if name == "fsdp":
        assert own["fsdp_transformer_layer_cls_to_wrap"] == Qwen2DecoderLayer.__name__


@pytest.mark.soak
def test_weights_that_are_cut_up_end_as_whole_ones(tmp_path):
    """FSDP2 through `accelerate launch` with the repository's configuration, in float32 on two processes that are taken for GPUs."""
    config = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp.yaml"), "--num_processes=2", "--mixed_precision=no"]
    finish(start(tmp_path / "two", 4, "cut", several=True, launcher=config), tmp_path / "two")
    finish(start(tmp_path / "one", 8, "cut"), tmp_path / "one")
    (one,), (told,) = results(tmp_path / "one", "cut", 1)
    assert told.pop("kinds") == ["Parameter"]
    assert told.pop("processes") == 1
    for tensors, tale in zip(*results(tmp_path / "two", "cut", 2), strict=True):
        assert tale.pop("kinds") == ["DTensor"]
        assert tale.pop("processes") == 2
        assert far(one, tensors) < (1e-5,)
        assert near(tale, told)


# Faults


def steps_taken(folder):
    log = folder / "steps"
    return [int(step) for step in log.read_text().split()] if log.is_file() else []


def kill(run, folder, rank, step):
    """SIGKILL to one of two processes, once that step is being taken."""
    deadline = time.time() + 300
    while not step <= max(steps_taken(folder)[-1:], default=0):
        assert run.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.time() < deadline, steps_taken(folder)
        time.sleep(0.02)
    os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    assert run.wait(timeout=300) != 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed") / "whole"
    finish(start(folder, 4, "slow", several=True), folder)
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_one_checkpoint_interval(uninterrupted, tmp_path, rank):
    """SIGKILL in the middle of an epoch, then the same command again: the same weights, and no step before the last checkpoint twice."""
    folder = tmp_path / "killed"
    run = start(folder, 4, "slow", several=True)
    kill(run, folder, rank, 13)
    before = steps_taken(folder)
    assert 13 <= max(before) < 20
    finish(start(folder, 4, "slow", several=True), folder)
    again = steps_taken(folder)[len(before) :]
    assert again[-1] == max(steps_taken(uninterrupted))
    assert max(before) - 4 <= again[0] <= max(before) + 1
    for number in range(2):
        ones, others = (load_file(place / f"slow/result-{number}.safetensors") for place in (uninterrupted, folder))
        assert far(ones, others)[0] == 0.0


@pytest.mark.soak
def test_a_killed_idgenrec_ends_in_the_same_weights(tmp_path):
    """SIGKILL once in the writer's training (12 steps) and once in the recommender's (24), in the middle of them."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, 4, "slow-idgenrec", several=True), whole)
    cut.mkdir()
    for rank, phase, step in ((0, "0-writer", 8), (1, "1-recommender", 13)):
        kill(start(cut, 4, "slow-idgenrec", several=True), cut, rank, step)
        assert (cut / "out/checkpoints" / phase).is_dir()
        assert not (cut / "out/checkpoints" / phase / "done").is_dir()
    finish(start(cut, 4, "slow-idgenrec", several=True), cut)
    assert len(steps_taken(whole)) < len(steps_taken(cut)) <= len(steps_taken(whole)) + 2 * 5
    for number in range(2):
        ones, others = (load_file(place / f"slow-idgenrec/result-{number}.safetensors") for place in (whole, cut))
        assert far(ones, others)[0] == 0.0


@pytest.mark.soak
def test_gradients_that_are_not_averaged_are_noticed(tmp_path):
    """The other side of the equality above: without the exchange the weights of the two processes part."""
    finish(start(tmp_path / "two", 4, "apart", several=True), tmp_path / "two")
    tensors, _ = results(tmp_path / "two", "apart", 2)
    assert far(*({name: values for name, values in own.items() if name.startswith("live.")} for own in tensors))[0] > 1e-3
