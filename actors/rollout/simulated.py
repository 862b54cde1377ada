"""An engine that samples nothing: how long responses are and how long a token takes come from a table.

For tests and benchmarks of everything around engines: it takes the same requests, gives the same segments and has the
same slots, versions and aborts as vLLM, at a speed of its own. Its tokens mean nothing.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from actors.episodes import VersionSpan
from actors.group import write_output_to_log
from actors.rollout.begun import ended_before
from actors.rollout.completions import refused
from actors.rollout.types import Begun, EngineStats, Finish, Request, Segment
from actors.rollout.worker import EngineHost

_LOGPROB = -1.0
"""Of every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What responses are like. Example: Table(lengths=(12, 400, 30), token_s=0.01) is three lengths over and over."""

    lengths: Sequence[int]
    """Tokens of responses, in the order in which samples are submitted; over and over. A longer one than the request
    allows is cut; one that was begun gets a token more at least."""
    token_s: float
    """Seconds that a token of one sample takes, whatever else runs."""
    start_s: float = 0.0
    """Seconds before the first token of a sample."""
    slots: int = 64
    """Samples that are worked on at one time."""


_NOTHING = Begun(token_ids=[], logprobs=np.empty(0, np.float32), versions=[])


@dataclass(slots=True, eq=False)
class _Sample:
    request: Request
    index: int
    length: int
    """Tokens that are sampled here: those that it has begun with are not among them."""
    begun: Begun
    started: float | None = None
    """By the clock; None while it waits for a slot."""
    versions: list[VersionSpan] = field(default_factory=list)
    """Of all its tokens; the last one is open while it runs."""

    def tokens(self, now: float, table: Table) -> int:
        """How many were sampled here by now."""
        if self.started is None:
            return 0
        if table.token_s == 0:
            return self.length
        return min(self.length, max(0, int((now - self.started - table.start_s) / table.token_s)))

    def end(self, table: Table) -> float:
        """When the last token is there; it has started."""
        assert self.started is not None
        return self.started + table.start_s + table.token_s * self.length

    def start(self, when: float, version: int) -> None:
        """Its tokens from now on are of this version."""
        self.started = when
        self.versions = list(self.begun.versions)
        self._open(version, len(self.begun.token_ids))

    def go_on(self, tokens: int, version: int) -> None:
        """After so many sampled here, with these weights."""
        self.versions = self.spans(tokens)
        self._open(version, len(self.begun.token_ids) + tokens)

    def _open(self, version: int, at: int) -> None:
        start = self.versions.pop().start if self.versions and self.versions[-1].version == version else at
        self.versions.append(VersionSpan(version=version, start=start, end=-1))

    def spans(self, tokens: int) -> list[VersionSpan]:
        """Which weights sampled what, of so many sampled here."""
        if self.started is None:
            return self.begun.versions
        *before, last = self.versions
        end = len(self.begun.token_ids) + tokens
        return [*before, VersionSpan(version=last.version, start=last.start, end=end)] if end > last.start else before


class SimulatedEngine:
    """See `Engine`. Time passes as `clock` says; nothing happens but when somebody calls."""

    def __init__(self, table: Table, clock: Callable[[], float] = time.monotonic) -> None:
        self.table = table
        self.version = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Sample] = deque()
        self._running: list[_Sample] = []
        self._segments: list[Segment] = []
        self._given: list[Segment] = []
        """By the last poll."""
        self._submitted = 0
        self._generated = 0
        self._lost = ""

    def submit(self, requests: list[Request], seed: int | None) -> None:
        """See `Engine`; the seed changes nothing."""
        with self._lock:
            for request in requests:
                for index in range(request.sampling.samples):
                    try:
                        ended = ended_before(request, index) if request.begun else None
                    except ValueError as error:
                        ended = refused(request.id, index, error)
                    if ended:
                        self._segments.append(ended)
                    else:
                        self._waiting.append(self._sample(request, index))
            self._advance()

    def _sample(self, request: Request, index: int) -> _Sample:
        begun = request.begun[index] if request.begun else _NOTHING
        # By number, so that a run is the same every time.
        length = self.table.lengths[self._submitted % len(self.table.lengths)]
        self._submitted += 1
        brought = len(begun.token_ids)
        length = max(length, brought + 1) if brought else length
        return _Sample(request, index, min(length, request.sampling.max_tokens) - brought, begun)

    def poll(self, wait_s: float) -> list[Segment]:
        """See `Engine`."""
        until = time.monotonic() + wait_s
        while True:
            with self._lock:
                self._advance()
                if self._lost and not self._segments:
                    raise RuntimeError(self._lost)
                segments, self._segments = self._segments, []
                self._given = segments
                pause = min((sample.end(self.table) for sample in self._running), default=np.inf) - self._clock()
            left = until - time.monotonic()
            if segments or left <= 0:
                return segments
            # In short naps: what another thread aborts or loses meanwhile is to be seen soon.
            time.sleep(max(0.0, min(pause, left, 0.05)))

    def abort(self, requests: list[int]) -> None:
        """See `Engine`."""
        with self._lock:
            self._advance()
            for sample in [each for each in (*self._running, *self._waiting) if each.request.id in requests]:
                (self._running if sample in self._running else self._waiting).remove(sample)
                self._end(sample, sample.tokens(self._clock(), self.table), "abort")
            self._advance()

    def progress(self, requests: list[int]) -> "Future[list[Segment]]":
        """See `Engine`."""
        answer: Future[list[Segment]] = Future()
        with self._lock:
            self._advance()
            now, asked = self._clock(), set(requests)
            samples = [each for each in (*self._running, *self._waiting) if each.request.id in asked]
            ended = [each for each in (*self._given, *self._segments) if each.request in asked]
            if self._lost:
                answer.set_exception(RuntimeError(self._lost))
            else:
                answer.set_result([_segment(each, each.tokens(now, self.table), "abort") for each in samples] + ended)
        return answer

    def stats(self) -> EngineStats:
        """See `Engine`."""
        with self._lock:
            self._advance()
            return EngineStats(
                version=self.version,
                running=len(self._running),
                waiting=len(self._waiting),
                slots=self.table.slots,
                cache_used=len(self._running) / self.table.slots,
                preemptions=0,
                generated_tokens=self._generated,
                silent_s=0.0,
                lost=self._lost,
            )

    def use(self, version: int) -> None:
        """Go on with the weights of this version: tokens from now on are of them."""
        with self._lock:
            self._advance()
            for sample in self._running:
                sample.go_on(sample.tokens(self._clock(), self.table), version)
            self.version = version

    def lose(self, why: str) -> None:
        """The engine is lost, with all it has."""
        with self._lock:
            self._lost = why
            self._running.clear()
            self._waiting.clear()

    def next_end(self) -> float:
        """When the next sample ends, by the clock; infinity where none is running."""
        with self._lock:
            return min((sample.end(self.table) for sample in self._running), default=np.inf)

    def _advance(self) -> None:
        """End what has ended by now, and let waiting samples take the slots, each at the moment it became free."""
        while True:
            while self._waiting and len(self._running) < self.table.slots:
                self._start(self._waiting.popleft(), self._clock())
            ended = min(self._running, key=lambda sample: sample.end(self.table), default=None)
            if ended is None or ended.end(self.table) > self._clock():
                return
            self._running.remove(ended)
            if self._waiting:
                self._start(self._waiting.popleft(), ended.end(self.table))
            cut = ended.length + len(ended.begun.token_ids) == ended.request.sampling.max_tokens
            self._end(ended, ended.length, "length" if cut else "stop")

    def _start(self, sample: _Sample, when: float) -> None:
        sample.start(when, self.version)
        self._running.append(sample)

    def _end(self, sample: _Sample, tokens: int, finish: Finish) -> None:
        self._generated += tokens
        self._segments.append(_segment(sample, tokens, finish))


def _segment(sample: _Sample, tokens: int, finish: Finish) -> Segment:
    """What a sample has: what it began with, and so many tokens that were sampled here."""
    return Segment(
        request=sample.request.id,
        index=sample.index,
        token_ids=sample.begun.token_ids + [sample.request.token_ids[-1]] * tokens,
        logprobs=np.concatenate([sample.begun.logprobs, np.full(tokens, _LOGPROB, dtype=np.float32)]),
        versions=sample.spans(tokens),
        finish=finish,
    )


class SimulatedRolloutWorker(EngineHost):
    """The actor of a simulated engine: what the driver asks of it is the real thing."""

    engine: SimulatedEngine

    def __init__(self, rank: int, world_size: int, table: Table) -> None:
        super().__init__(lambda segment: f"{len(segment.token_ids)} tokens")
        write_output_to_log()
        self.engine = SimulatedEngine(table)

    async def use(self, version: int) -> None:
        """See `SimulatedEngine.use`."""
        self.engine.use(version)
