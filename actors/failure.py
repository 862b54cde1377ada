"""What is said of a failure: all of what it says first, and nothing that hides it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from actors.secret_text import masked

_HEADING = re.compile(r"[:\uff1a]$|^\d+ validation errors? for ")
"""A line that says nothing without the next one; the second is pydantic's."""
_ITEM = re.compile(r"\s|[-*\u2022]\s|\(?\d+[.)]\s")
"""How a line of a list begins."""
_LONGEST, _LONGEST_READ = 400, 20_000
"""Characters of a reason that is more than one line, and of a message that are looked at."""


@contextmanager
def told_beside(error: BaseException, what: str) -> Iterator[None]:
    """Within it, `what` is done because of an `error` that goes on its way; if it fails too, that is a note on it."""
    try:
        yield
    except Exception as second:  # Whatever it is: the first one is the cause.
        error.add_note(f"{what} failed as well: {type(second).__name__}: {second}")


def reason_of(error: BaseException) -> str:
    """What an exception of somebody else's says first, on one line, without secrets; its type where it says nothing.

    Example: reason_of(ValueError("GenerationConfig is invalid:\\n- `top_k`: is -1\\n- `top_p`: is 2\\nSee ...")) is
    "GenerationConfig is invalid: - `top_k`: is -1 - `top_p`: is 2".
    """
    return first_sentence(str(error)) or type(error).__name__


def first_sentence(text: str) -> str:
    """The first line of a message that says something, without secrets; where it is a heading, what stands below it,
    too: the next line, or all lines of a list. Empty for an empty one."""
    # Masked as a whole: a key may have several lines.
    lines = [line.rstrip() for line in masked(text[:_LONGEST_READ]).splitlines() if line.strip()]
    if not lines:
        return ""
    found = lines[0].strip()
    listed = False
    for line in lines[1:]:
        item = _ITEM.match(line) is not None
        # Below a heading comes a list, or one line that may be a heading itself.
        if not (_HEADING.search(found) or (listed and item)):
            break
        listed = item
        found = f"{found} {line.strip()}"
        if len(found) > _LONGEST:
            return f"{found[: _LONGEST - 4]} ..."
    return found
