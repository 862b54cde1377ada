"""The half of an engine's actor that serves requests, whichever engine is behind it.

submit(requests, begun) --> [engine] --poll()--> which have ended or are held, collect(ids) --> Episodes, Begun
abort(ids), progress(ids), stats(): beside generation
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import ray

from actors.episodes import Episode, EpisodeStatus, Turn
from actors.rollout.begun import so_far
from actors.rollout.types import (
    Begun,
    BegunInfo,
    Engine,
    EngineStats,
    Finish,
    Finished,
    Request,
    RolloutInfo,
    Segment,
)

_COMPANY_S = 0.02
"""How long the news of a request that has ended waits for others, while any are running: the driver takes a millisecond
for a poll, however much it tells."""

_STATUSES: dict[Finish, EpisodeStatus] = {"stop": "ok", "length": "truncated", "held": "truncated"}
"""Any other has failed. Held ones are told as episodes where another response of their group has."""


_Had = list[Episode] | tuple[Begun, ...]
"""Responses, or what held samples have."""


class NoWeights(RuntimeError):
    """An engine has no whole weights, and takes no requests before it has."""


class EngineHost:
    """The half of an engine's actor that serves requests, whichever engine is behind it.

    What is sampled stays here, until somebody collects it, as an object on this node that the driver only refers to;
    so does what held samples have, and what it is asked for beside generation.
    """

    engine: Engine
    _decode_marked: Callable[[Segment], str] | None = None

    def __init__(self, decode: Callable[[Segment], str], marked: Callable[[Segment], str] | None = None) -> None:
        """`decode` gives the text of a response, `marked` the one with special tokens, where that is wanted."""
        self._decode, self._decode_marked = decode, marked
        self._open: dict[int, tuple[Request, list[Segment]]] = {}
        """Requests of which samples are still to end, and those that have ended."""
        self._ended: dict[int, _Had] = {}
        """Of requests that nobody has collected yet: what has ended, or what each sample of a held one has."""
        self._aborted: dict[int, bool] = {}
        """Of the open requests, those that were asked to end, and whether what they have will be collected."""

    @ray.method(concurrency_group="requests")
    async def submit(
        self, requests: list[Request], seed: int | None, ids: Sequence[int] = (), *begun: tuple[Begun, ...]
    ) -> None:
        """Start sampling responses to prompts; see `Engine.submit`, and `poll`.

        The requests `ids` go on from what is `begun`, which comes from wherever it was sampled, and not by the driver.
        """
        # Random weights, of which no version would tell.
        if self.engine.version < 0:
            raise NoWeights("asked to generate before the first weights arrived, or after half of new ones did")
        found = dict(zip(ids, begun, strict=True))
        whole = [replace(each, begun=found[each.id]) if each.id in found else each for each in requests]
        for request in whole:
            self._open[request.id] = request, []
        self.engine.submit(whole, seed)

    @ray.method(concurrency_group="requests")
    async def poll(self, wait_s: float, places: int = 0) -> list[Finished] | tuple[list[Finished] | _Had | None, ...]:
        """Requests all of whose samples have ended, or are held, since the last poll; waits up to `wait_s` seconds for
        the first, and then a moment for others.

        To be asked again whenever it has answered; raises what has ended the engine. With `places`, so many objects
        more: the responses to the first of these requests that have some, None where there are fewer. Those to others
        are to be collected.
        """
        until, completed = time.monotonic() + wait_s, list[int]()
        while True:
            try:
                # In a thread: the engine's news are waited for without holding up who submits, collects or aborts.
                segments = await asyncio.to_thread(self.engine.poll, max(0.0, until - time.monotonic()))
            except Exception:
                if not completed:
                    raise
                segments, until = [], 0.0  # the next poll raises it again
            # A sample that ends before the others of its request is no news for the driver, and not worth a call.
            if (news := self._completed(segments)) and not completed:
                until = min(until, time.monotonic() + _COMPANY_S)
            completed += news
            if time.monotonic() >= until or len(completed) == len(self._open):
                finished = [self._finish(request) for request in completed]
                return (finished, *self._first(finished, places)) if places else finished

    @ray.method(concurrency_group="requests")
    async def collect(self, *requests: int) -> tuple[_Had | None, ...]:
        """None, and then for each request that `poll` has told of the responses to it, or what its samples have if it
        is held; once."""
        return None, *(self._ended.pop(request) for request in requests)

    @ray.method(concurrency_group="requests")
    async def split(self, shares: list[list[list[int]]], *groups: list[Episode]) -> tuple[list[Episode] | None, ...]:
        """None, then, group by group, the episodes of each of its shares, which are lists of their numbers.

        An engine's process does this as it is on the machine that most of them are on, and no rank should fetch
        episodes that are not its own.
        """
        parts = [
            [group[index] for index in indices]
            for group, of_group in zip(groups, shares, strict=True)
            for indices in of_group
        ]
        return None, *parts

    @ray.method(concurrency_group="requests")
    async def abort(self, requests: list[int], keep: bool = False) -> None:
        """End these requests; `poll` tells of each. What they have so far can be collected with `keep`, and is gone
        without, also of those that have ended on the way here."""
        self._end(requests, keep=keep)

    @ray.method(concurrency_group="requests")
    async def abort_older(self, version: int) -> None:
        """See `Engine.abort_older`; `poll` tells of each of these requests, and what they have is gone."""
        self.engine.abort_older(version)

    # Not among control calls, which run on a thread of their own: what has ended moves from here to there meanwhile.
    @ray.method(concurrency_group="requests")
    async def progress(
        self, requests: list[int]
    ) -> tuple[dict[int, tuple[BegunInfo, ...]] | tuple[Begun, ...] | None, ...]:
        """What the driver sees of `Engine.progress`, by request; then, request by request, what the samples have.

        Left out, and None, is a request that has not come yet, or of which `poll` tells or has told.
        """
        known = [request for request in requests if request in self._open]
        segments = await asyncio.wrap_future(self.engine.progress(known))
        # Looked up now: what the engine had given to a poll before the last one has come here.
        found = so_far(segments, [self._open[request] for request in known if request in self._open])
        told = {request: tuple(map(BegunInfo.of, samples)) for request, samples in found.items()}
        return told, *(found.get(request) for request in requests)

    @ray.method(concurrency_group="control")
    async def stats(self) -> EngineStats:
        """How the engine is, whatever its thread is doing."""
        return self.engine.stats()

    def _end(self, requests: list[int], *, keep: bool) -> None:
        # What has ended on the way here is no longer open, and the engine knows nothing of it.
        running = [request for request in requests if request in self._open]
        self._aborted |= dict.fromkeys(running, keep)
        for request in () if keep else requests:
            self._ended.pop(request, None)
        self.engine.abort(running)

    def _first(self, finished: list[Finished], places: int) -> list[_Had | None]:
        """What `poll` gives beside its news."""
        first = [each.request for each in finished if not each.error and not each.aborted][:places]
        found = [self._ended.pop(request) for request in first]
        return [*found, *[None] * (places - len(found))]

    def _completed(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of the requests that these segments complete, in the order in which they did."""
        completed = []
        for segment in segments:
            request, ended = self._open[segment.request]
            ended.append(segment)
            if len(ended) == request.sampling.samples:
                completed.append(request.id)
        return completed

    def _finish(self, number: int) -> Finished:
        request, segments = self._open.pop(number)
        kept = self._aborted.pop(number, None)
        if refused := [segment.error for segment in segments if segment.finish == "refused"]:
            return Finished(request=number, infos=[], error=refused[0])
        # They end in any order; which response has which number must not depend on it.
        segments.sort(key=lambda segment: segment.index)
        if kept is None and _is_held(segments):
            self._ended[number] = begun = tuple(segment.begun for segment in segments)
            return Finished(request=number, infos=[], held=tuple(map(BegunInfo.of, begun)))
        given = np.array(request.token_ids, dtype=np.int32)
        # Of an aborted request, what is held has ended no more than what ran.
        cut = {"abort"} if kept is None else {"abort", "held"}
        aborted = kept is False or any(segment.finish in cut for segment in segments)
        kept = kept or not aborted
        episodes = [self._episode(given, segment, read=kept) for segment in segments]
        if kept:
            self._ended[number] = episodes
        return Finished(request=number, infos=list(map(RolloutInfo.of, episodes)), aborted=aborted)

    def _episode(self, given: np.ndarray, segment: Segment, *, read: bool = True) -> Episode:
        """`read`: with its text."""
        turn = Turn(
            given_token_ids=given,
            sampled_token_ids=np.array(segment.token_ids, dtype=np.int32),
            rollout_logprobs=segment.logprobs,
            versions=segment.versions,
            finish_reason=segment.finish,
        )
        marked = self._decode_marked(segment) if self._decode_marked and read else None
        status = _STATUSES.get(segment.finish, "failed")
        return Episode(turns=[turn], status=status, text=self._decode(segment) if read else "", marked_text=marked)


def _is_held(segments: Sequence[Segment]) -> bool:
    """Whether some are held, and none has come to nothing: a group of which one has failed is not waited for."""
    ways = {segment.finish for segment in segments}
    return "held" in ways and ways <= {"held", "stop", "length"}
