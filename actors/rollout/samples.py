"""Responses that vLLM works on, and what it says of them, as segments: tokens, logprobs, versions, how they ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.episodes import VersionSpan
from actors.rollout.types import Finish, Request, Segment


class _Logprobs(Protocol):
    token_ids: list[int]
    logprobs: list[float]


class _Span(Protocol):
    start: int
    end: int
    version: str


class _Completion(Protocol):
    """vLLM's CompletionOutput with the `flat_logprobs` that it was asked for."""

    token_ids: Sequence[int]
    logprobs: _Logprobs
    weight_versions: Sequence[_Span] | None
    finish_reason: str | None
    stop_reason: int | str | None
    text: str


@dataclass(slots=True)
class TakenRequest:
    """A request that vLLM works on, which its samples share."""

    request: Request
    params: Any
    """vLLM's SamplingParams."""
    oldest: float = math.inf
    """Version of the oldest weights that have sampled a token of those that have ended; infinite without any."""

    def refused(self, index: int, error: Exception) -> Segment:
        """Of a sample that vLLM does not take, and why."""
        return Segment(
            request=self.request.id,
            index=index,
            token_ids=[],
            logprobs=np.empty(0, dtype=np.float32),
            versions=[],
            finish="refused",
            error=f"{type(error).__name__}: {error}",
        )


@dataclass(frozen=True, slots=True)
class RunningSample:
    """A response that vLLM works on."""

    taken: TakenRequest
    index: int
    inside: str
    """Its name within vLLM, which an abort needs."""

    def oldest(self, state: Any) -> float:
        """Version of the oldest weights that have sampled a token of it, which vLLM's `state` of it tells, or of those
        of its request that have ended; infinite without any."""
        return min([self.taken.oldest, *(int(version) for version, _ in state.weight_version_starts)])

    def end(self, completion: _Completion) -> Segment:
        """What it has, when it has ended. Raises RuntimeError where vLLM does not say of each token what sampled it."""
        segment = _segment(self.taken.request.id, self.index, completion)
        self.taken.oldest = min([self.taken.oldest, *(span.version for span in segment.versions)])
        return segment


_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


def _segment(request: int, index: int, completion: _Completion) -> Segment:
    tokens = list(completion.token_ids)
    if completion.logprobs.token_ids != tokens:
        raise RuntimeError(f"the engine must give one logprob for each of the {len(tokens)} sampled tokens")
    reason = completion.finish_reason
    return Segment(
        request=request,
        index=index,
        token_ids=tokens,
        logprobs=np.array(completion.logprobs.logprobs, dtype=np.float32),
        versions=_spans(completion, len(tokens)),
        finish=_FINISHES.get(str(reason), "error"),
        ended_by=completion.stop_reason,
        text=completion.text,
        error="" if reason in _FINISHES else f"vLLM ended it with finish reason {reason}",
    )


def _spans(completion: _Completion, length: int) -> list[VersionSpan]:
    """Which weights sampled which tokens of a response. Raises RuntimeError when the engine does not say it of each."""
    # Weights that came and went between two tokens have sampled none.
    spans = [span for span in completion.weight_versions or [] if span.end > span.start]
    if [*(span.start for span in spans), length] != [0, *(span.end for span in spans)]:
        raise RuntimeError(
            f"the engine must say of each of the {length} tokens of a response which weights have sampled it, and says "
            f"it of {[(span.start, span.end) for span in spans]}"
        )
    return [VersionSpan(version=int(span.version), start=span.start, end=span.end) for span in spans]
