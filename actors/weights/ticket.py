"""What travels beside weights: a ticket of what the trainer published, and each engine's account of what it got.

Both are small, whatever the size of the model: bytes of a digest and of some logprobs.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["weights", "adapter"]
"""What a version consists of: whole weights, and with LoRA adapters that are sent alone, these beside them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the trainer says of a part that it has sent."""

    version: int
    """With which it went: whole weights of an adapter are those of an earlier version."""
    digest: str | None
    """`actors.weights.checksum.digest` of its tensors; None where nobody will compare it."""
    logprobs: np.ndarray
    """Of the canary prompt as the trainer computes them with this part, [L-1]; empty where nobody will compare them."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A published version: what engines fetch, and what their accounts are compared with."""

    version: int
    parts: dict[Kind, Sent]
    """In the order in which an engine needs them."""
    canary: list[int]
    """Token ids of the prompt that tells whether both sides compute alike, [L]."""
    seconds: float
    """That training stood still for it."""
    merge_error: float | None
    """`MergeError.value` of adapters that were merged into the weights; None where none were."""

    @property
    def last(self) -> Kind:
        """The part without which an engine does not have this version."""
        return list(self.parts)[-1]  # an adapter comes after the weights below it


@dataclass(frozen=True, slots=True)
class Got:
    """What one engine says of a part that it has received."""

    digests: list[str]
    """Per worker process, of the tensors as they arrived; of an adapter, of those that its layers compute with."""
    logprobs: np.ndarray
    """Of the canary prompt at temperature 1, [L-1]; empty where they were not asked for."""


@dataclass(frozen=True, slots=True)
class Account:
    """One engine's, of a version: the parts that it has received for it and gives account of."""

    engine: int
    parts: dict[Kind, Got] = field(default_factory=dict)
    seconds: float = 0.0
    """From when it was asked for this version until it, and all that were asked with it, had it: the longest that it
    can have stood still for it, beside `Ticket.seconds`."""
