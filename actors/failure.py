"""What is done after a failure must not hide it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told_beside(error: BaseException, what: str) -> Iterator[None]:
    """Within it, `what` is done because of an `error` that goes on its way; if it fails too, that is a note on it."""
    try:
        yield
    except Exception as second:  # Whatever it is: the first one is the cause.
        error.add_note(f"{what} failed as well: {type(second).__name__}: {second}")
