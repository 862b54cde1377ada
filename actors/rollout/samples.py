"""Responses that vLLM works on, and what it says of them, as segments: tokens, logprobs, versions, how they ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from actors.episodes import VersionSpan
from actors.rollout.types import Finish, Request, Segment, covered


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
    """vLLM's SamplingParams, of a sample that was not begun."""
    stops_at: int
    """Tokens with which such a one is held, or at its limit."""
    oldest: float = math.inf
    """Version of the oldest weights that have sampled a token of those that have ended; infinite without any."""

    def ended(self, segment: Segment) -> Segment:
        """The segment of one of its samples, whose weights count from now on."""
        self.oldest = min([self.oldest, *(span.version for span in segment.versions)])
        return segment


@dataclass(frozen=True, slots=True)
class RunningSample:
    """A response that vLLM works on."""

    taken: TakenRequest
    index: int
    inside: str
    """Its name within vLLM, which an abort needs."""
    stops_at: int
    """Tokens with which it is held, or at its limit."""
    brought: int = 0
    """Tokens that it had when it came here."""

    def oldest(self, state: Any) -> float:
        """Version of the oldest weights that have sampled a token of it, which vLLM's `state` of it tells, or of those
        of its request that have ended; infinite without any."""
        return min([self.taken.oldest, *(int(version) for version, _ in state.weight_version_starts)])

    def so_far(self, completion: _Completion) -> Segment:
        """What it has. Raises RuntimeError where vLLM does not say of each token what sampled it."""
        return _segment(self.taken.request.id, self.index, completion)

    def end(self, completion: _Completion) -> Segment:
        """What it has, when it has ended or is held; raises as `so_far` does."""
        segment = self.so_far(completion)
        # One that ends with this very token, by itself or by a stop string, has ended.
        most = self.taken.request.sampling.max_tokens
        if segment.finish == "length" and len(segment.token_ids) == self.stops_at < most:
            segment = replace(segment, finish="held")
        return self.taken.ended(segment)


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
    found = [span for span in completion.weight_versions or [] if span.end > span.start]
    spans = [VersionSpan(version=int(span.version), start=span.start, end=span.end) for span in found]
    if not covered(spans, length):
        raise RuntimeError(
            f"the engine must say of each of the {length} tokens of a response which weights have sampled it, and says "
            f"it of {[(span.start, span.end) for span in found]}"
        )
    return spans
