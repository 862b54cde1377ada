"""What becomes of groups that are not trained on: how many, why, and of which prompts none will come."""

from dataclasses import dataclass, field
from typing import Literal

from actors.episodes import Prompt

Why = Literal["stale", "failed", "alike"]
"""stale: too old too often; failed: in an engine or a reward; alike: its scores do not differ."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A prompt that was drawn and is never trained on in this pass over the data."""

    prompt: Prompt
    why: Why


@dataclass(slots=True)
class Discards:
    """What became of groups that were not given out, since somebody has asked last."""

    dropped: int = 0
    """Complete ones that were too old."""
    aborted: int = 0
    """Ones that were ended on their engines, as some of their tokens were too old."""
    alike: int = 0
    """Ones that teach nothing, as their scores do not differ."""
    postponed: int = 0
    """Ones that a later step takes."""
    held: int | None = None
    """Responses that had to wait for new weights, as often as they had to; None where none ever has."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Prompts of which no group will come."""
