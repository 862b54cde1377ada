"""vLLM's completions as segments: of each token its logprob and the weights that sampled it, or an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.episodes import VersionSpan
from actors.rollout.types import Finish, Segment, covered

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(frozen=True, slots=True)
class RunningSample:
    """A response that vLLM works on."""

    request: int
    index: int
    inside: str
    """Its name within vLLM, which an abort needs."""
    brought: int = 0
    """Tokens that it had when it came here."""


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


def segment_of(sample: RunningSample, completion: _Completion) -> Segment:
    """Of one of vLLM's completions. Raises RuntimeError where it does not say of each token what sampled it."""
    tokens = list(completion.token_ids)
    if completion.logprobs.token_ids != tokens:
        raise RuntimeError(f"the engine must give one logprob for each of the {len(tokens)} sampled tokens")
    reason = completion.finish_reason
    return Segment(
        request=sample.request,
        index=sample.index,
        token_ids=tokens,
        logprobs=np.array(completion.logprobs.logprobs, dtype=np.float32),
        versions=_spans(completion, len(tokens)),
        finish=_FINISHES.get(str(reason), "error"),
        ended_by=completion.stop_reason,
        text=completion.text,
        error="" if reason in _FINISHES else f"vLLM ended it with finish reason {reason}",
    )


def refused(request: int, index: int, error: Exception) -> Segment:
    """Of a sample that was never started."""
    return Segment(
        request=request,
        index=index,
        token_ids=[],
        logprobs=np.empty(0, dtype=np.float32),
        versions=[],
        finish="refused",
        error=f"{type(error).__name__}: {error}",
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
