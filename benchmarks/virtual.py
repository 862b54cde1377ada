"""Engines in virtual time under `algorithms.rollouts.engines.Engines`: a thousand of them in a process, no sleep.

What happens is a heap of the moments at which samples end. The clock goes on in `wait` alone, from one such moment to
the next, and stands still while the trainer does anything but wait for groups or train for so many virtual seconds
(`train`): a run is the same every time, whatever the threads' speed.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import floor, inf
from typing import Any

from actors.episodes import EpisodeStatus, VersionSpan
from actors.rollout.types import BegunInfo, Finished, Request, RolloutInfo
from algorithms.rollouts.engines import Ended, Lost
from algorithms.rollouts.rollouts import Rollouts

_ROUNDING = 1e-6
"""Tokens that sums of many shares of a token may be off."""
_NONE_BEGUN: Mapping[int, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an engine decodes: every running sample gets a token every `step_s + sample_s x running` seconds."""

    step_s: float
    """Seconds of a decoding step, whatever runs: the weights are read once."""
    sample_s: float
    """Seconds that each running sample adds."""
    slots: int
    """Samples that run at one time; others wait, in their order."""

    def token_s(self, running: float) -> float:
        """Seconds of a token."""
        return self.step_s + self.sample_s * running


@dataclass(frozen=True, slots=True)
class Cut:
    """What a sample has so far: `begun` in place of references to `actors.rollout.types.Begun`."""

    spans: list[VersionSpan]
    length: int
    """Of the whole response."""

    @property
    def tokens(self) -> int:
        """So far."""
        return self.spans[-1].end if self.spans else 0


@dataclass(slots=True)
class _Group:
    """A request on its engine."""

    request: Request
    begun: list[Cut]
    """What its samples had when they came here."""
    left: int = 0
    """Samples that have not ended, and are not held."""
    infos: dict[int, RolloutInfo] = field(default_factory=dict)
    spans: dict[int, list[VersionSpan]] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Sample:
    """One that runs."""

    start: float
    """By the engine's count of tokens."""
    length: int
    """Tokens that it gets here."""
    index: int
    group: _Group


class _Engine:
    """One engine. `done`: tokens that a sample which has run from the beginning would have by `at`."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.waiting: deque[tuple[_Group, int, int]] = deque()
        """With the number of a sample, and tokens that it gets here."""
        self.running: list[tuple[float, int, _Sample]] = []
        """A heap, by the count of tokens at which they end; the number decides between equal ones."""
        self.open: dict[int, _Group] = {}
        self.versions: list[tuple[float, int]] = [(0.0, 0)]
        """From how many tokens done on, which weights."""
        self.done = self.at = 0.0
        self.busy_s = self.filled_s = 0.0
        """Seconds with something running; the same, times how many."""
        self.turn = 0
        self._numbers = 0

    def advance(self, now: float) -> None:
        """Decode until now; what ends until then has been taken out before."""
        passed, running = now - self.at, len(self.running)
        if running:
            self.done = min(self.done + passed / self.speed.token_s(running), self.running[0][0])
            self.busy_s += passed
            self.filled_s += passed * running
        self.at = now

    def next_end(self) -> float:
        """When the next sample ends."""
        if not self.running:
            return inf
        return self.at + (self.running[0][0] - self.done) * self.speed.token_s(len(self.running))

    def start(self) -> None:
        """Fill the slots."""
        while self.waiting and len(self.running) < self.speed.slots:
            group, index, length = self.waiting.popleft()
            self._numbers += 1
            sample = _Sample(self.done, length, index, group)
            heapq.heappush(self.running, (self.done + length, self._numbers, sample))

    def end(self) -> list[_Group]:
        """Take out samples that have all their tokens; the groups that are complete with them."""
        complete = []
        while self.running and self.running[0][0] <= self.done + _ROUNDING:
            sample = heapq.heappop(self.running)[-1]
            self.leave(sample)
            if not sample.group.left:
                complete.append(sample.group)
        return complete

    def take(self, group: _Group) -> None:
        """Queue a group's samples; what has nothing to do here comes back as it was."""
        sampling = group.request.sampling
        group.left = len(group.begun)
        for index, cut in enumerate(group.begun):
            step = sampling.max_step_tokens
            used = sum(span.end - span.start for span in cut.spans if span.version == self.versions[-1][1])
            left = cut.length - cut.tokens
            length = left if step is None else min(left, max(0, step - used))
            if length:
                self.waiting.append((group, index, length))
            else:
                self.leave(_Sample(self.done, 0, index, group))

    def leave(self, sample: _Sample) -> None:
        """A sample has ended, or is held."""
        group, cut = sample.group, sample.group.begun[sample.index]
        whole = cut.tokens + sample.length == cut.length
        limit = group.request.sampling.max_tokens
        if not whole:
            group.held.add(sample.index)
        self._tell(sample, sample.length, "truncated" if cut.length == limit else "ok")

    def abort(self, group: _Group) -> None:
        """End all its samples with what they have."""
        for *_, sample in self.running:
            if sample.group is group:
                self._tell(sample, self._so_far(sample), "failed")
        self.running = [each for each in self.running if each[-1].group is not group]
        heapq.heapify(self.running)
        for _, index, _ in [each for each in self.waiting if each[0] is group]:
            self._tell(_Sample(self.done, 0, index, group), 0, "failed")
        self.waiting = deque(each for each in self.waiting if each[0] is not group)

    def older_than(self, version: int) -> list[int]:
        """Requests of which weights before this version have sampled a token."""
        old = {request for request, group in self.open.items() if _oldest(group) < version}
        for *_, sample in self.running:
            spans = self._spans(sample, self._so_far(sample))
            if spans and spans[0].version < version:
                old.add(sample.group.request.id)
        return sorted(old)

    def _so_far(self, sample: _Sample) -> int:
        return floor(self.done - sample.start + _ROUNDING)

    def _tell(self, sample: _Sample, tokens: int, status: EpisodeStatus) -> None:
        group, spans = sample.group, self._spans(sample, tokens)
        prompt, tokens = len(group.request.token_ids), spans[-1].end if spans else 0
        group.infos[sample.index] = RolloutInfo(
            tokens=prompt + tokens,
            prompt_tokens=prompt,
            sampled_tokens=tokens,
            status=status,
            oldest_version=spans[0].version if spans else -1,
        )
        group.spans[sample.index] = spans
        group.left -= 1

    def _spans(self, sample: _Sample, tokens: int) -> list[VersionSpan]:
        """Of all its tokens, so many of them sampled here."""
        before = sample.group.begun[sample.index].spans
        had = before[-1].end if before else 0
        spans, until = list[VersionSpan](), tokens
        for done, version in reversed(self.versions):
            # A token is of the weights that are there when it is finished.
            begin = min(tokens, max(0, floor(done - sample.start + _ROUNDING)))
            if begin < until:
                spans.insert(0, VersionSpan(version=version, start=had + begin, end=had + until))
                until = begin
            if not until:
                break
        if before and spans and before[-1].version == spans[0].version:
            spans[0] = replace(spans[0], start=before[-1].start)
            before = before[:-1]
        return before + spans


class VirtualEngines:
    """See the module. `watch` binds it to the rollouts that it serves, before anything is asked of either."""

    def __init__(self, speeds: Sequence[Speed], lengths: Callable[[Request], list[int]]) -> None:
        """`lengths` says how many tokens each sample of a request gets."""
        self.engines = [_Engine(speed) for speed in speeds]
        self.now = 0.0
        self.cpu_s = 0.0
        """Processor time of all this, which is none of the driver's."""
        self.submitted: dict[int, Request] = {}
        """Requests that have not ended."""
        self.most_open = 0
        """Most of them at one time."""
        self.requests = 0
        self.heard: Callable[[Request], None] = lambda _: None
        """Hears of each that has not begun."""
        self._lengths = lengths
        self._heap: list[tuple[float, int, int]] = []
        self._news: list[Ended | Lost] = []
        self._ended: dict[int, list[list[VersionSpan]] | list[Cut]] = {}
        self._until: float | None = None
        """When the trainer will have trained."""

    def watch(self, rollouts: Rollouts) -> None:
        """Time is to stand still whenever whoever takes from these is neither waiting nor training."""
        self._rollouts, self._changed = rollouts, rollouts._changed

    def clock(self) -> float:
        """Virtual seconds."""
        return self.now

    def __len__(self) -> int:
        return len(self.engines)

    def submit(
        self, engine: int, requests: list[Request], seed: int | None, begun: Mapping[int, Any] = _NONE_BEGUN
    ) -> None:
        """See `Engines`; lengths do not depend on the seed."""
        began, own = time.thread_time(), self.engines[engine]
        own.advance(self.now)
        for request in requests:
            if request.id in self.submitted or request.id in self._ended:
                raise ValueError(f"request {request.id} comes twice")
            cuts = begun.get(request.id)
            if cuts is None:
                self.heard(request)
                cuts = [Cut([], length) for length in self._lengths(request)]
            group = _Group(request, cuts)
            own.open[request.id], self.submitted[request.id] = group, request
            own.take(group)
            if not group.left:  # all of them are held, or had ended
                self._complete(engine, group, aborted=False, keep=True)
        self.requests += len(requests)
        self.most_open = max(self.most_open, len(self.submitted))
        own.start()
        self._plan(engine)
        self.cpu_s += time.thread_time() - began

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        """See `Engines`; with `keep`, responses have the status failed."""
        with self._changed:
            own = self.engines[engine]
            own.advance(self.now)
            for group in [own.open[request] for request in requests if request in own.open]:
                own.abort(group)
                self._complete(engine, group, aborted=True, keep=keep)
            own.start()
            self._plan(engine)

    def abort_older(self, engine: int, version: int) -> None:
        """See `Engines`."""
        with self._changed:
            began, own = time.thread_time(), self.engines[engine]
            own.advance(self.now)
            if old := own.older_than(version):
                self.abort(engine, old)
            self.cpu_s += time.thread_time() - began

    def collect(self, engine: int, requests: list[int]) -> list[Any]:
        """See `Engines`; instead of references, which weights sampled which tokens: a list of each sample's spans, or
        of each one's `Cut` where some are held."""
        return [self._ended.pop(request) for request in requests]

    def wait(self, others: Sequence[Any], timeout_s: float) -> list[Ended | Lost]:
        """See `Engines`, in virtual seconds; returns, too, when the trainer asks for more, as that may start now."""
        with self._changed:
            limit = self.now + timeout_s
            while True:
                if self._stands_still():
                    self._changed.wait_for(lambda: not self._stands_still())
                    return []
                began = time.thread_time()
                news = self._go_on(limit if self._until is None else min(limit, self._until))
                self.cpu_s += time.thread_time() - began
                if self._until is not None and self.now >= self._until and not news:
                    self._until = None
                    self._changed.notify_all()
                elif news or self.now >= limit:
                    return news

    def train(self, seconds: float) -> None:
        """The trainer is busy for so many virtual seconds, and the engines go on meanwhile."""
        with self._changed:
            self._until = self.now + seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._until is None or self._is_idle())
            if self._until is not None:  # nobody waits for engines that have nothing to do
                self.now, self._until = self._until, None

    def use(self, version: int) -> None:
        """All engines have weights of this version from now on, in the middle of whatever they sample."""
        with self._changed:
            began = time.thread_time()
            for engine in self.engines:
                engine.advance(self.now)
                engine.versions.append((engine.done, version))
            self.cpu_s += time.thread_time() - began

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Counts are up to now, and stay as they are within."""
        with self._changed:
            for engine in self.engines:
                engine.advance(self.now)
            yield

    def _stands_still(self) -> bool:
        wanted = self._rollouts._wanted
        if self._until is not None or self._rollouts._closed:
            return False
        return wanted is None or wanted.lane.can_give(wanted.groups, wanted.version)

    def _is_idle(self) -> bool:
        rollouts = self._rollouts
        return rollouts._thread is None or rollouts._error is not None or not rollouts._has_work()

    def _go_on(self, limit: float) -> list[Ended | Lost]:
        """Until something can be told, or the limit."""
        while not self._news and self._heap and self._heap[0][0] <= limit:
            self.now, engine, turn = heapq.heappop(self._heap)
            own = self.engines[engine]
            if turn != own.turn:
                continue  # something else came before it
            own.advance(self.now)
            own.done = own.running[0][0]  # exactly, where the time is rounded
            for group in own.end():
                self._complete(engine, group, aborted=False, keep=True)
            own.start()
            self._plan(engine)
        if not self._news:
            self.now = limit
        news, self._news = self._news, []
        return news

    def _complete(self, engine: int, group: _Group, *, aborted: bool, keep: bool) -> None:
        request, samples = group.request.id, range(len(group.begun))
        infos, spans = [group.infos[index] for index in samples], [group.spans[index] for index in samples]
        del self.engines[engine].open[request], self.submitted[request]
        if group.held and not aborted:
            self._ended[request] = [Cut(spans[index], group.begun[index].length) for index in samples]
            held = tuple(
                BegunInfo(
                    tokens=infos[index].sampled_tokens,
                    oldest_version=infos[index].oldest_version,
                    ended=index not in group.held,
                )
                for index in samples
            )
            self._news.append(Ended(engine, Finished(request=request, infos=[], held=held)))
            return
        if keep:
            self._ended[request] = spans
        self._news.append(Ended(engine, Finished(request=request, infos=infos, aborted=aborted)))

    def _plan(self, engine: int) -> None:
        own = self.engines[engine]
        own.turn += 1
        if own.running:
            heapq.heappush(self._heap, (own.next_end(), engine, own.turn))


def _oldest(group: _Group) -> float:
    """Version of the weights that sampled any token of its samples that have ended, or that it had before."""
    told = [info.oldest_version for info in group.infos.values() if info.oldest_version >= 0]
    return min([*told, *(cut.spans[0].version for cut in group.begun if cut.spans)], default=inf)
