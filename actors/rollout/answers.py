"""Answers to those who hold a future, who may have gone."""

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

# Nobody may hear an answer: a caller that was cancelled has cancelled its future. That is no reason for the thread, and
# with it everybody else's answers, to end.


def fulfil(future: "Future[T]", answer: T) -> None:
    """Give an answer."""
    with suppress(InvalidStateError):
        future.set_result(answer)


def fail(future: "Future[T]", error: Exception) -> None:
    """Tell of an error."""
    with suppress(InvalidStateError):
        future.set_exception(error)
