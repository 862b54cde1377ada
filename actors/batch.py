"""What travels between stages: Prompt -> Rollout -> Experience, jagged; and PackedBatch, built at the model.

A type says which stage its data has reached: no field is empty "until later". Per-sample arrays are numpy, so that the
driver and the data code need no torch.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RolloutStatus = Literal["ok", "truncated", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered prompt and the data row it came from.

    Example: Prompt(index=7, token_ids=[5, 9, 2], text="sort: dab", row={"prompt": "dab", "answer": "abd"})
    """

    index: int
    """Row number in the data."""
    token_ids: list[int]
    """Tokens after the chat template, [P]."""
    text: str
    """The prompt as reward functions and people see it (without template tokens)."""
    row: dict[str, Any]
    """All columns of the data row, for reward functions."""
    of_set: str = ""
    """Name of the set that the row is from; empty where the data is one set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Tokens and which of them are learned from: what SFT trains on, and the base of an Experience.

    Example: Sequence(token_ids=[5, 9, 2, 8, 1], action_mask=[False, False, False, True, True])
    """

    token_ids: NDArray[np.int64]
    """Prompt and response, [L]."""
    action_mask: NDArray[np.bool_]
    """True at tokens that were sampled (or are imitated), [L]; never at position 0."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Response tokens [start, end) were sampled with weight version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response to a prompt, as the engine produced it."""

    prompt_token_ids: list[int]
    """[P]"""
    response_token_ids: list[int]
    """Sampled tokens, the end-of-sequence token (or another one that ended the response) included, [R]."""
    rollout_logprobs: NDArray[np.float32]
    """log pi of the sampler, after temperature and truncation of the distribution, [R]."""
    versions: list[VersionSpan]
    """Weight version of every response token, in order, covering [0, R)."""
    finish_reason: str
    """vLLM's: "stop", "length" or "abort"."""
    status: RolloutStatus
    """ok: ended by itself; truncated: cut at the length limit; failed: anything else."""
    text: str
    """Response without special tokens, and without the token or (see rollout.keep_stop_string) string that ended it."""

    @property
    def tokens(self) -> int:
        """Prompt and response length."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Sequence):
    """A sequence and numbers about it that a loss needs.

    Example: Labelled(token_ids=[5, 9, 2], action_mask=[False, False, True], labels={"reference_logprob": -1.25})
    """

    labels: dict[str, float]


TokenFields = dict[tuple[int, int], dict[str, NDArray[np.float32]]]
"""(group, response) -> name -> value at each token of prompt and response, [L]; 0 where action_mask is False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience(Sequence):
    """A rollout with everything that losses and advantages read.

    Example: Experience(token_ids=[5, 9, 2], action_mask=[False, False, True], fields={"rollout_logprobs": [0, 0, -1.5],
        "advantages": [0.5, 0.5, 0.5]})
    """

    fields: dict[str, NDArray[np.float32]]
    """Name -> value at each token, [L]: rollout_logprobs always, then what earlier stages have added."""


def experience(rollout: Rollout, fields: dict[str, NDArray[np.float32]] | None = None) -> Experience:
    """Join prompt and response; only response tokens are actions."""
    prompt, response = rollout.prompt_token_ids, rollout.response_token_ids
    mask = np.zeros(len(prompt) + len(response), dtype=np.bool_)
    mask[len(prompt) :] = True
    logprobs = np.zeros(len(mask), dtype=np.float32)
    logprobs[len(prompt) :] = rollout.rollout_logprobs
    return Experience(
        token_ids=np.array(prompt + response, dtype=np.int64),
        action_mask=mask,
        fields={"rollout_logprobs": logprobs, **(fields or {})},
    )
