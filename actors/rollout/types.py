"""What the driver and the rollout engines tell each other; importable without vLLM."""

from dataclasses import dataclass

from actors.batch import RolloutStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the responses to one prompt are drawn."""

    samples: int
    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutInfo:
    """What the driver sees of a response: no tokens."""

    prompt_tokens: int
    response_tokens: int
    status: RolloutStatus
    oldest_version: int
    """Of the weights that sampled any of its tokens; -1 without a token."""
