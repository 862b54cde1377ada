"""Samples that no engine works on, begun before and ended or refused; and what the samples of a request have so far."""

from collections.abc import Iterable, Sequence

import numpy as np

from actors.rollout.types import Begun, Finish, Request, Sampling, Segment

NOTHING = Begun(token_ids=np.empty(0, np.int32), logprobs=np.empty(0, np.float32), versions=[])
"""Of a sample that has not started."""


def stops_at(sampling: Sampling, begun: Begun, version: int) -> int:
    """How many tokens a sample has, with those that it has begun with, when weights of this version have sampled of it
    what they may: then it is held, or at its limit."""
    most, step = sampling.max_tokens, sampling.max_step_tokens
    if step is None:
        return most
    used = sum(span.end - span.start for span in begun.versions if span.version == version)
    return min(most, len(begun.token_ids) + max(0, step - used))


def ended_before(request: Request, index: int, version: int) -> Segment | None:
    """The whole of a sample that had ended, or has all tokens that it may have, in all or of weights of this version;
    None where it goes on.

    Raises ValueError for one that goes on and has more.
    """
    begun, most = request.begun[index], request.sampling.max_tokens
    if begun.finish is not None:
        return _whole(request, index, begun, begun.finish)
    if (tokens := len(begun.token_ids)) > most:
        raise ValueError(f"sample {index} has begun with {tokens} tokens, more than the {most} that it may have")
    if tokens == most:
        return _whole(request, index, begun, "length")
    stop = stops_at(request.sampling, begun, version)
    return _whole(request, index, begun, "held") if tokens == stop else None


def _whole(request: Request, index: int, begun: Begun, finish: Finish) -> Segment:
    """What a sample had begun with, as one that has ended."""
    return Segment(
        request=request.id,
        index=index,
        token_ids=begun.token_ids.tolist(),
        logprobs=begun.logprobs,
        versions=begun.versions,
        finish=finish,
        ended_by=begun.ended_by,
        text=begun.text,
        error=begun.error,
    )


def refused(request: int, index: int, error: Exception) -> Segment:
    """Of a sample that an engine does not take, and why."""
    return Segment(
        request=request,
        index=index,
        token_ids=[],
        logprobs=np.empty(0, dtype=np.float32),
        versions=[],
        finish="refused",
        error=f"{type(error).__name__}: {error}",
    )


def so_far(
    segments: Iterable[Segment], requests: Sequence[tuple[Request, list[Segment]]]
) -> dict[int, tuple[Begun, ...]]:
    """Id of a request -> what each of its samples has, in their order.

    `segments` are what an engine has told of them; `requests` have beside them what has ended, some of it since then.
    """
    found = {(each.request, each.index): each for each in segments}
    for _, ended in requests:
        found |= {(each.request, each.index): each for each in ended}
    return {
        request.id: tuple(found[request.id, index].begun for index in range(request.sampling.samples))
        for request, _ in requests
    }
