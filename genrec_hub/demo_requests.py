"""What a request to the demo may ask for, and the one sentence it gets otherwise."""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Final, ParamSpec, TypeVar

import gradio as gr

from .demo_cards import RecommendationFields
from .demo_models import Lazy, Recommender

logger = logging.getLogger(__name__)

MAX_K: Final = 50
MAX_HISTORY: Final = 20_000
"""Characters of a history."""
SERVER_FAULT: Final = "Something went wrong on our side; please try again."

P = ParamSpec("P")
R = TypeVar("R")


def fault(sentence: str) -> gr.Error:
    """The caller's mistake, as Gradio tells it."""
    return gr.Error(sentence, print_exception=False)


def sentence_of(error: Exception) -> str:
    """What a visitor is told of an error; what is no fault of theirs goes to the log and stays there."""
    if isinstance(error, gr.Error):
        return str(error.message)
    if isinstance(error, ValueError):
        return str(error)
    logger.error("A request failed.", exc_info=error)
    return SERVER_FAULT


def speaking(endpoint: Callable[P, R]) -> Callable[P, R]:
    """The endpoint with every failure as one sentence."""

    @wraps(endpoint)
    def speak(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return endpoint(*args, **kwargs)
        except Exception as error:
            raise fault(sentence_of(error)) from None

    return speak


def pick(lazy: Mapping[str, Lazy], model: str) -> Lazy:
    """The model of a short name."""
    if not isinstance(model, str) or model not in lazy:
        raise fault(f"There is no model {str(model)[:60]!r}: the models here are {', '.join(lazy)}.")
    return lazy[model]


def whole(k: object) -> int:
    """How many results, checked."""
    counts = (isinstance(k, int) and not isinstance(k, bool)) or (isinstance(k, float) and k.is_integer())
    number = int(k) if counts else 0  # type: ignore[call-overload]
    if not 1 <= number <= MAX_K:
        raise fault(f"k is {str(k)[:40]!r}: give a whole number from 1 to {MAX_K}.")
    return number


def yes_or_no(value: object) -> bool:
    """Whether seen items stay out, checked."""
    if not isinstance(value, bool):
        raise fault(f"exclude_seen is {str(value)[:40]!r}: give true or false.")
    return value


def written(history: object) -> str:
    """A history that says something, checked."""
    if not isinstance(history, str) or not history.strip():
        raise fault("The history is empty: write at least one item, one per line.")
    if len(history) > MAX_HISTORY:
        raise fault(f"The history has {len(history):,} characters, the limit is {MAX_HISTORY:,}: keep the latest items.")
    return history


def recommend(pipe: Recommender, history: str, k: int, exclude_seen: bool, department: str | None = None) -> list[RecommendationFields]:
    """Recommends after all checks."""
    return pipe(written(history), top_k=whole(k), exclude_seen=exclude_seen, department=department)
