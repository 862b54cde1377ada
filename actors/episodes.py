"""What travels between stages: Prompt -> Episode -> Experience; `Episode.action_mask` makes the mask of sampled tokens.

All of it is jagged, a sequence at a time: only at the model, `actors.models.packed` makes a PackedBatch of them.
A type says which stage its data has reached: no field is empty "until later". Per-sample arrays are numpy, so that the
driver and the data code need no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EpisodeStatus = Literal["ok", "truncated", "failed"]
Place = tuple[int, int]
"""Of an episode in a step: number of its group, number within the group."""


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

    @property
    def name(self) -> str:
        """Its row, with its set where there are several: as `left_out` in metrics.jsonl has it."""
        return f"{self.of_set}:{self.index}" if self.of_set else str(self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Tokens and which of them are learned from: what SFT trains on, and the base of an Experience.

    Example: Sequence(token_ids=[5, 9, 2, 8, 1], action_mask=[False, False, False, True, True])
    """

    token_ids: NDArray[np.int64]
    """All tokens, [L]: prompt and response, or prompt and turns."""
    action_mask: NDArray[np.bool_]
    """True at tokens that were sampled (or are imitated), [L]; never at position 0."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Of what was sampled in a turn, tokens [start, end) were sampled with weight version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the policy was given, and what it sampled then.

    Raises ValueError for other than one logprob per sampled token, and for a reward where nothing was sampled that it
    could be the reward of.
    """

    given_token_ids: NDArray[np.int32]
    """What the policy read before it went on, and did not choose: in the first turn the prompt, later the text of a
    tool or an environment, [G]."""
    sampled_token_ids: NDArray[np.int32]
    """The end-of-sequence token (or another one that ended the turn) included, [R]."""
    rollout_logprobs: NDArray[np.float32]
    """log pi of the sampler, after temperature and truncation of the distribution, of what was sampled, [R]."""
    versions: list[VersionSpan]
    """Weight version of every sampled token, in order, covering [0, R)."""
    finish_reason: str
    """vLLM's: "stop", "length" or "abort"."""
    reward: float | None = None
    """What the environment gave for this turn, beside what the episode is scored with in the end."""

    def __post_init__(self) -> None:
        tokens, logprobs = len(self.sampled_token_ids), len(self.rollout_logprobs)
        if tokens != logprobs:  # they would be shifted against each other, and train
            raise ValueError(f"a turn needs one logprob per sampled token, got {logprobs} of {tokens}")
        if self.reward is not None and not tokens:
            raise ValueError(f"a turn without sampled tokens can have no reward, got {self.reward}")

    def __reduce__(self) -> tuple[Callable[..., "Turn"], tuple[object, ...]]:
        # As bytes: pickle takes longer for an array than for all else in a short turn, and Ray for each that it keeps
        # apart; what a copy of long ones costs is nothing beside sampling them.
        tokens = [np.asarray(each, np.int32).tobytes() for each in (self.given_token_ids, self.sampled_token_ids)]
        spans = [(span.version, span.start, span.end) for span in self.versions]
        logprobs = np.asarray(self.rollout_logprobs, np.float32).tobytes()
        return _turn, (*tokens, logprobs, spans, self.finish_reason, self.reward)


def _turn(
    given: bytes,
    sampled: bytes,
    logprobs: bytes,
    spans: list[tuple[int, int, int]],
    finish_reason: str,
    reward: float | None,
) -> Turn:
    """A turn that has travelled; its arrays are read-only, as all that Ray gives."""
    return Turn(
        given_token_ids=np.frombuffer(given, np.int32),
        sampled_token_ids=np.frombuffer(sampled, np.int32),
        rollout_logprobs=np.frombuffer(logprobs, np.float32),
        versions=[VersionSpan(version=version, start=start, end=end) for version, start, end in spans],
        finish_reason=finish_reason,
        reward=reward,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What came of a prompt: one response, or several with what a tool or an environment said in between.

    What was sampled is trained on; what was given is only read.
    """

    turns: list[Turn]
    """At least one."""
    status: EpisodeStatus
    """ok: ended by itself; truncated: cut at the length limit; failed: anything else."""
    text: str
    """What was sampled in the last turn, without special tokens, and without the token or (see
    rollout.keep_stop_string) string that ended it.

    This is what reward functions score: an answer is in the last turn, and those that look for one must not find what
    an earlier turn was thinking of.
    """
    marked_text: str | None = None
    """The same with special tokens, which reward functions score with reward.keep_special_tokens; None without."""

    @property
    def prompt_token_ids(self) -> NDArray[np.int32]:
        """[P]"""
        return self.turns[0].given_token_ids

    @property
    def tokens(self) -> int:
        """All tokens, given and sampled."""
        return self.sampled_tokens + sum(len(turn.given_token_ids) for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy chose: those of all turns."""
        return sum(len(turn.sampled_token_ids) for turn in self.turns)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens, given and sampled, in their order, [L]."""
        parts = [part for turn in self.turns for part in (turn.given_token_ids, turn.sampled_token_ids)]
        # What travels is int32, half the bytes; PyTorch gathers by int64.
        return np.concatenate(parts).astype(np.int64)

    @property
    def action_mask(self) -> NDArray[np.bool_]:
        """True where a token was sampled, [L]."""
        return self.at_sampled(lambda turn: np.ones(len(turn.sampled_token_ids)), 0).astype(np.bool_)

    @property
    def versions(self) -> NDArray[np.float32]:
        """Weight version of every sampled token, [L]; -1 where a token was given."""
        # Among the fields, which are float32: one dtype travels for all.
        return self.at_sampled(_versions, -1)

    @property
    def turn_rewards(self) -> dict[int, float]:
        """Position of the last sampled token of a turn -> the turn's reward; of turns that have one."""
        found, end = {}, 0
        for turn in self.turns:
            end += len(turn.given_token_ids) + len(turn.sampled_token_ids)
            if turn.reward is not None:
                found[end - 1] = turn.reward
        return found

    def at_sampled(self, values: Callable[[Turn], NDArray[np.generic]], elsewhere: float) -> NDArray[np.float32]:
        """`values` of what each turn has sampled, [R] each, at its place among all tokens, [L]."""
        parts = [
            part
            for turn in self.turns
            for part in (np.full(len(turn.given_token_ids), elsewhere, dtype=np.float32), values(turn))
        ]
        return np.concatenate(parts).astype(np.float32)


def _versions(turn: Turn) -> NDArray[np.float32]:
    # Exact in float32, as all fields are, below 2^24 versions.
    found = np.full(len(turn.sampled_token_ids), -1, dtype=np.float32)
    for span in turn.versions:
        found[span.start : span.end] = span.version
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Sequence):
    """A sequence and numbers about it that a loss needs.

    Example: Labelled(token_ids=[5, 9, 2], action_mask=[False, False, True], labels={"reference_logprob": -1.25})
    """

    labels: dict[str, float]


TokenFields = dict[Place, dict[str, NDArray[np.float32]]]
"""Place -> name -> value at each token of the episode, [L]; 0 where action_mask is False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience(Sequence):
    """An episode with everything that losses and advantages read.

    Example: Experience(token_ids=[5, 9, 2], action_mask=[False, False, True], fields={"rollout_logprobs": [0, 0, -1.5],
        "advantages": [0.5, 0.5, 0.5]})
    """

    fields: dict[str, NDArray[np.float32]]
    """Name -> value at each token, [L]: rollout_logprobs and versions always, then what earlier stages have added."""
    turn_rewards: dict[int, float] = field(default_factory=dict)
    """Position of a turn's last action token -> the turn's reward; of turns that have one."""


def experience(episode: Episode, fields: dict[str, NDArray[np.float32]] | None = None) -> Experience:
    """All turns in one sequence; only what was sampled is an action."""
    return Experience(
        token_ids=episode.token_ids,
        action_mask=episode.action_mask,
        fields={
            "rollout_logprobs": episode.at_sampled(lambda turn: turn.rollout_logprobs, 0),
            "versions": episode.versions,
            **(fields or {}),  # what a stage has computed wins
        },
        turn_rewards=episode.turn_rewards,
    )
