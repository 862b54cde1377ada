"""The token of a page: what it may be, a random one, and the one that the environment gives."""

import os
import re
import secrets

VARIABLE = "TANDEM_WATCH_TOKEN"
RULE = "must be 8 to 200 letters, digits, - and _, got something else"


def is_token(text: str) -> bool:
    """Whether a text may be one: a short one could be guessed, others would be changed in an address."""
    return re.fullmatch(r"[A-Za-z0-9_-]{8,200}", text) is not None


def usual_token() -> str:
    """That of the environment, or else one that nobody can guess.

    Raises:
        UserError: that of the environment may be none.
    """
    given = os.environ.get(VARIABLE, "")
    if given and not is_token(given):
        from actors.config import UserError  # the command line's arguments, which import this, need no pydantic

        raise UserError(f"{VARIABLE}: {RULE}")
    return given or secrets.token_urlsafe(18)
