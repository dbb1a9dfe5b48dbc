"""Several processes at one piece of work (torchrun, accelerate launch): who does which rows, and how the parts become one answer.

A single process needs nothing of it: `share` is everything then, and `added` and `gathered` give back what they got. With several, every
process has to come along, and all of them end with the same answer. What they tell each other lies in the host's memory (gloo), on
machines with GPUs too; gradients are the Trainer's business.
"""

import atexit
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


def join() -> None:
    """Meets the other processes that the launcher started; does nothing in a process that was started alone, or twice.

    Raises:
        RuntimeError: when the launcher promised another number of processes than came.
    """
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_part)
    if count() != promised:
        raise RuntimeError(f"The launcher says there are {promised} processes (WORLD_SIZE), but {count()} have met.")


def _part() -> None:
    """Leaves the others; nobody else may have done so before."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def count() -> int:
    """How many processes have met."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def number() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first() -> bool:
    """Whether this is the one that writes files and talks."""
    return number() == 0


def wait() -> None:
    """Returns when all processes have come here."""
    added(torch.zeros(1))


def share(rows: int) -> range:
    """The rows that this process does: neighbours, as many as the others do, within one."""
    return range(rows * number() // count(), rows * (number() + 1) // count())


def added(part: torch.Tensor) -> torch.Tensor:
    """The sum over all processes: rows that each filled for itself, zeros elsewhere, become the whole. Shape: any -> same."""
    if count() == 1:
        return part
    whole = part.contiguous()
    distributed.all_reduce(whole)
    return whole


def gathered(part: Sequence[Any]) -> list[Any]:
    """The lists of all processes, one after the other; entries travel as JSON."""
    if count() == 1:
        return list(part)
    text = torch.frombuffer(bytearray(json.dumps(list(part)).encode()), dtype=torch.uint8)
    sizes = added(torch.tensor([len(text) if number() == place else 0 for place in range(count())])).tolist()
    own = torch.zeros(max(sizes), dtype=torch.uint8)
    own[: len(text)] = text
    texts = [torch.empty_like(own) for _ in sizes]
    distributed.all_gather(texts, own)
    parts = (json.loads(bytes(found[:size].tolist())) for found, size in zip(texts, sizes, strict=True))
    return [entry for entries in parts for entry in entries]


def told(value: Any) -> Any:
    """What the first process says, whatever the others think; it travels as JSON."""
    return gathered([value] if first() else [])[0] if count() > 1 else value
