"""ZeroGPU: where a Space lends a GPU call by call, answers are computed on it; anywhere else nothing changes.

The package `spaces` is there on Spaces alone and no dependency of ours. On ZeroGPU its decorator forks a process that has the GPU for the
time of a call: arguments and answers are pickled, and whatever the call changes is gone with that process. So a call takes texts alone,
finds its model in the memory that it inherited, moves it to the GPU there, and gives back plain data. This process keeps to the CPU; it
answers for uploaded catalogues, which no other process has. On other hardware the decorator does nothing.
"""

import os
from collections.abc import Callable
from typing import Any, Final

from .timing import clocked, hear

try:
    from spaces import GPU
except ImportError:
    GPU = None

SECONDS: Final = 20
"""What a call asks for at most; short ones wait less."""
COMPUTED: Final = ("__call__", "beams", "nearest", "usual")
"""What is computed on the GPU; all else of a recommender needs none."""

_home = os.getpid()
_known: dict[str, Any] = {}
"""Models by name, in this process on the CPU."""
_moved: dict[str, Any] = {}
"""The same on the GPU, in a process that has it."""


def lend(name: str, pipe: Any) -> Any:
    """Returns the recommender, or one that computes on a lent GPU where there are such."""
    if GPU is None:
        return pipe
    import torch

    pipe.device = torch.device("cpu")  # ZeroGPU pretends that this process has a GPU
    pipe.model.to(pipe.device)
    _known[name] = pipe
    return Lent(name, pipe)


class Lent:
    """A recommender whose answers are computed wherever the decorator says; it looks like the recommender itself.

    Args:
        name: under which the model is known.
        pipe: the recommender, on the CPU.
    """

    def __init__(self, name: str, pipe: Any) -> None:
        self._name, self._pipe = name, pipe

    def __getattr__(self, what: str) -> Any:
        return self._at(what) if what in COMPUTED else getattr(self._pipe, what)

    def __call__(self, history: str, **how: Any) -> Any:
        """Recommends, as the recommender does."""
        return self._at("__call__")(history, **how)

    def _at(self, what: str) -> Callable[..., Any]:
        def computed(*arguments: Any, **how: Any) -> Any:
            answer, times = _compute(self._name, what, arguments, how)
            hear(times)
            if isinstance(answer, ValueError):
                raise answer
            return answer

        return computed


def _compute(name: str, what: str, arguments: tuple[Any, ...], how: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    """One answer, and the seconds of its stages; a ValueError is an answer too, since the decorator would keep its sentence to itself."""
    with clocked() as times:
        try:
            return getattr(_at_hand(name), what)(*arguments, **how), times
        except ValueError as error:
            return error, times


def _at_hand(name: str) -> Any:
    """The model where this process computes."""
    if os.getpid() == _home:
        return _known[name]
    if name not in _moved:
        import torch

        torch.set_num_threads(1)  # threads that a fork leaves behind would be waited for without end
        pipe, device = _known[name], "cuda" if torch.cuda.is_available() else "cpu"
        _moved[name] = type(pipe)(model=pipe.model, processor=pipe.processor, task=pipe.task, device=device)
    return _moved[name]


if GPU is not None:
    _compute = GPU(duration=SECONDS)(_compute)
