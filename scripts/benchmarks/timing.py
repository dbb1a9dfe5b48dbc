"""CPU seconds of several forms of the same work, side by side."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Runs all works once a round, one after the other, and returns the least CPU seconds of each; a first round only warms up.

    Other work finds the caches as its neighbours leave them, as in a server, where a backbone runs between two answers.
    """
    best = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            spent = time.process_time() - start
            if number:
                best[name] = min(best[name], spent)
    return best
