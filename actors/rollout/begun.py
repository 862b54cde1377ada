"""Samples that no engine works on, begun before and ended or refused; and what the samples of a request have so far."""

from collections.abc import Iterable, Sequence

import numpy as np

from actors.rollout.types import Begun, Finish, Request, Segment


def ended_before(request: Request, index: int) -> Segment | None:
    """The whole of a sample that had ended, or that has all tokens that it may have; None where it goes on.

    Raises ValueError for one that goes on and has more.
    """
    begun, most = request.begun[index], request.sampling.max_tokens
    if begun.finish is not None:
        return _whole(request, index, begun, begun.finish)
    if (tokens := len(begun.token_ids)) > most:
        raise ValueError(f"sample {index} has begun with {tokens} tokens, more than the {most} that it may have")
    return _whole(request, index, begun, "length") if tokens == most else None


def _whole(request: Request, index: int, begun: Begun, finish: Finish) -> Segment:
    """What a sample had begun with, as one that has ended."""
    return Segment(
        request=request.id,
        index=index,
        token_ids=begun.token_ids,
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
