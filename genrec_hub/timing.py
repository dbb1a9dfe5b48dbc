"""How long things take: the stages of an answer, which the code that runs them names; and a run, all its starts together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter, process_time

_listening: ContextVar[dict[str, float] | None] = ContextVar("listening", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Names what runs inside; costs next to nothing while nobody listens."""
    times = _listening.get()
    if times is None:
        yield
        return
    start = perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + perf_counter() - start


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Listens to the stages inside: seconds by name, in the order they first came; other threads are not heard."""
    times: dict[str, float] = {}
    before = _listening.set(times)
    try:
        yield times
    finally:
        _listening.reset(before)


def hear(times: Mapping[str, float]) -> None:
    """Adds stages that were clocked apart, for instance in another process."""
    own = _listening.get()
    if own is not None:
        for name, seconds in times.items():
            own[name] = own.get(name, 0.0) + seconds


class Clock:
    """Seconds and CPU seconds of a run, with those of earlier starts that it goes on from."""

    def __init__(self) -> None:
        self.set({})

    def set(self, spent: Mapping[str, float]) -> None:
        """Goes on from what a clock has shown."""
        self._wall = perf_counter() - spent.get("seconds", 0.0)
        self._cpu = process_time() - spent.get("cpu_seconds", 0.0)

    def spent(self) -> dict[str, float]:
        """What the clock shows: `seconds` and `cpu_seconds`."""
        return {"seconds": round(perf_counter() - self._wall, 1), "cpu_seconds": round(process_time() - self._cpu, 1)}
