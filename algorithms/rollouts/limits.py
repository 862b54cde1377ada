"""How long engines may take, and how much may fail."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long engines may take, and how many samples may fail."""

    silence_s: float
    """Longest time in which an engine finishes none of what it has (rollout.timeout_s)."""
    prompt_s: float | None = None
    """Longest time that the responses to one prompt take (rollout.prompt_timeout_s)."""
    max_failed: float = 0.0
    """Share of a step's samples (reward.max_failed_fraction)."""
    attempts: int = 1
    """How many engines a prompt may be lost with before the run ends. With 1, the loss of an engine ends it where the
    engine had prompts; one that had none is done without, while another is left, until weights are sent to it."""
    restart_s: float = 0.0
    """Longest time without any engine (rollout.restart_timeout_s)."""
    starts: int = 1
    """How often a prompt starts whose responses become too old (rollout.max_attempts)."""
