"""An engine that samples nothing: how long responses are and how long a token takes come from a table.

For tests and benchmarks of everything around engines: it takes the same requests, gives the same segments and has the
same slots, versions and aborts as vLLM, at a speed of its own. Its tokens mean nothing.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from actors.config_rollout import OnUpdate
from actors.episodes import VersionSpan
from actors.output_log import write_output_to_log
from actors.rollout.begun import NOTHING, ended_before, refused, stops_at
from actors.rollout.host import EngineHost
from actors.rollout.occupancy import Occupancy
from actors.rollout.types import Begun, EngineStats, Finish, Request, Segment

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


@dataclass(slots=True, eq=False)
class _Taken:
    """A request, which its samples share."""

    request: Request
    oldest: float = np.inf
    """Version of the oldest weights that have sampled a token of those that have ended; infinite without any."""


@dataclass(slots=True, eq=False)
class _Sample:
    taken: _Taken
    index: int
    length: int
    """Of the whole response."""
    begun: Begun
    stop: int
    """Tokens with which it is held here, or at its limit."""
    started: float = 0.0
    versions: list[VersionSpan] = field(default_factory=list)
    """Of all its tokens, the last one open; empty while it waits for a slot."""

    @property
    def brought(self) -> int:
        """Tokens that it had when it came here."""
        return len(self.begun.token_ids)

    @property
    def most(self) -> int:
        """Tokens that it has when it leaves the engine."""
        return min(self.length, self.stop)

    @property
    def finish(self) -> Finish:
        """How it leaves it."""
        if self.stop == self.request.sampling.max_tokens <= self.length:
            return "length"
        return "stop" if self.length <= self.stop else "held"

    @property
    def request(self) -> Request:
        """Whose it is."""
        return self.taken.request

    def tokens(self, now: float, table: Table) -> int:
        """How many were sampled here by now; none of one that waits."""
        left = self.most - self.brought
        if not self.versions:
            return 0
        if table.token_s == 0:
            return left
        return min(left, max(0, int((now - self.started - table.start_s) / table.token_s)))

    def spans(self, tokens: int) -> list[VersionSpan]:
        """Which weights have sampled which of its tokens, so many of them here."""
        if not self.versions:
            return self.begun.versions
        spans = [*self.versions[:-1], replace(self.versions[-1], end=self.brought + tokens)]
        return [span for span in spans if span.end > span.start]

    def use(self, version: int, tokens: int) -> None:
        """What is sampled after so many tokens is of these weights."""
        *before, last = self.spans(tokens) or [VersionSpan(version=version, start=0, end=0)]
        # Those of the last span go on with it.
        spans = before if last.version == version else [*before, last]
        start = last.start if last.version == version else last.end
        self.versions = [*spans, VersionSpan(version=version, start=start, end=-1)]

    def begin_anew(self, now: float) -> None:
        """From its prompt."""
        self.begun, self.versions, self.started = NOTHING, [], now

    def end(self, table: Table) -> float:
        """When the last token is there."""
        return self.started + table.start_s + table.token_s * (self.most - self.brought)

    def segment(self, tokens: int, finish: Finish) -> Segment:
        """What it has: what it began with, and so many tokens that were sampled here."""
        return Segment(
            request=self.request.id,
            index=self.index,
            token_ids=self.begun.token_ids.tolist() + [self.request.token_ids[-1]] * tokens,
            logprobs=np.concatenate([self.begun.logprobs, np.full(tokens, _LOGPROB, dtype=np.float32)]),
            versions=self.spans(tokens),
            finish=finish,
        )


class SimulatedEngine:
    """See `Engine`. Time passes as `clock` says; nothing happens but when somebody calls."""

    def __init__(
        self, table: Table, clock: Callable[[], float] = time.monotonic, on_update: OnUpdate = "recompute"
    ) -> None:
        """Keys and values cost nothing here: `on_update` recompute and keep_cache are the same."""
        self.table = table
        self.version = 0
        self._clock = clock
        self._on_update = on_update
        self._lock = threading.Lock()
        self._waiting: deque[_Sample] = deque()
        self._running: list[_Sample] = []
        self._segments: list[Segment] = []
        self._given: list[Segment] = []
        """By the last poll."""
        self._submitted = 0
        self._generated = 0
        self._discarded = 0
        self._occupancy = Occupancy(table.slots, clock)
        self._paused_at: float | None = None
        self._lost = ""

    def submit(self, requests: list[Request], seed: int | None) -> None:
        """See `Engine`; the seed changes nothing."""
        with self._lock:
            self._advance()  # a slot that has become free meanwhile was free before these came
            for request in requests:
                taken = _Taken(request)
                for index in range(request.sampling.samples):
                    try:
                        ended = ended_before(request, index, self.version) if request.begun else None
                    except ValueError as error:
                        ended = refused(request.id, index, error)
                    if ended:
                        self._tell(taken, ended)
                    else:
                        self._waiting.append(self._sample(taken, index))
            self._advance()

    def _sample(self, taken: _Taken, index: int) -> _Sample:
        request = taken.request
        begun = request.begun[index] if request.begun else NOTHING
        # By number, so that a run is the same every time.
        length = self.table.lengths[self._submitted % len(self.table.lengths)]
        self._submitted += 1
        if len(begun.token_ids):
            length = max(length, len(begun.token_ids) + 1)
        stop = stops_at(request.sampling, begun, self.version)
        return _Sample(taken, index, min(length, request.sampling.max_tokens), begun, stop)

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
                pause = min((sample.end(self.table) for sample in self._running), default=np.inf) - self._time()
            left = until - time.monotonic()
            if segments or left <= 0:
                return segments
            # In short naps: what another thread aborts or loses meanwhile is to be seen soon.
            time.sleep(max(0.0, min(pause, left, 0.05)))

    def abort(self, requests: list[int]) -> None:
        """See `Engine`."""
        with self._lock:
            self._advance()
            self._abort(set(requests))

    def abort_older(self, version: int) -> None:
        """See `Engine`."""
        with self._lock:
            self._advance()
            self._abort({each.request.id for each in (*self._running, *self._waiting) if self._is_older(each, version)})

    def progress(self, requests: list[int]) -> "Future[list[Segment]]":
        """See `Engine`."""
        answer: Future[list[Segment]] = Future()
        with self._lock:
            self._advance()
            now, asked = self._time(), set(requests)
            samples = [each for each in (*self._running, *self._waiting) if each.request.id in asked]
            ended = [each for each in (*self._given, *self._segments) if each.request in asked]
            if self._lost:
                answer.set_exception(RuntimeError(self._lost))
            else:
                answer.set_result([each.segment(each.tokens(now, self.table), "abort") for each in samples] + ended)
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
                discarded_tokens=self._discarded,
                sampled_tokens=self._generated
                + sum(each.tokens(self._time(), self.table) for each in self._running)
                + self._discarded,
                **self._occupancy.seconds(),
                silent_s=0.0,
                lost=self._lost,
            )

    def use(self, version: int) -> None:
        """Go on with the weights of this version: tokens from now on are of them, with `on_update` restart all."""
        with self._lock:
            self._advance()
            now = self._time()
            for sample in self._running:
                tokens = sample.tokens(now, self.table)
                if self._on_update == "restart":
                    sample.begin_anew(now)
                    self._discarded, tokens = self._discarded + tokens, 0
                sample.use(version, tokens)
            self.version = version

    def pause(self) -> None:
        """Sample no token until `resume`, and keep all that is running."""
        with self._lock:
            self._advance()
            if self._paused_at is None:
                self._paused_at = self._clock()
            self._note(self._clock())

    def resume(self) -> None:
        """Go on where `pause` has stopped."""
        with self._lock:
            if self._paused_at is None:
                return
            for sample in self._running:
                sample.started += self._clock() - self._paused_at
            self._paused_at = None
            self._advance()

    def lose(self, why: str) -> None:
        """The engine is lost, with all it has."""
        with self._lock:
            self._advance()
            self._lost = why
            self._running.clear()
            self._waiting.clear()
            self._note(self._clock())

    def next_end(self) -> float:
        """When the next sample ends, by the clock; infinity where none is running."""
        with self._lock:
            if self._paused_at is not None:
                return np.inf
            return min((sample.end(self.table) for sample in self._running), default=np.inf)

    def _time(self) -> float:
        """Up to when samples have got on."""
        return self._clock() if self._paused_at is None else self._paused_at

    def _note(self, at: float) -> None:
        self._occupancy.note(len(self._running), steps=self._paused_at is None, at=at)

    def _advance(self) -> None:
        """End what has ended by now, and let waiting samples take the slots, each at the moment it became free."""
        while True:
            while self._waiting and len(self._running) < self.table.slots:
                self._start(self._waiting.popleft(), self._time())
            self._note(self._clock())
            ended = min(self._running, key=lambda sample: sample.end(self.table), default=None)
            if ended is None or ended.end(self.table) > self._time():
                return
            self._running.remove(ended)
            if self._waiting:
                self._start(self._waiting.popleft(), ended.end(self.table))
            self._note(ended.end(self.table))
            self._end(ended, ended.most - ended.brought, ended.finish)

    def _is_older(self, sample: _Sample, version: int) -> bool:
        """Whether older weights have sampled any token of it, or of those of its request that have ended."""
        spans = sample.spans(sample.tokens(self._time(), self.table))
        return min([sample.taken.oldest, *(span.version for span in spans)]) < version

    def _abort(self, requests: set[int]) -> None:
        for sample in [each for each in (*self._running, *self._waiting) if each.request.id in requests]:
            (self._running if sample in self._running else self._waiting).remove(sample)
            self._end(sample, sample.tokens(self._time(), self.table), "abort")
        self._advance()

    def _start(self, sample: _Sample, when: float) -> None:
        sample.started = when
        sample.use(self.version, 0)
        self._running.append(sample)

    def _end(self, sample: _Sample, tokens: int, finish: Finish) -> None:
        self._generated += tokens
        self._tell(sample.taken, sample.segment(tokens, finish))

    def _tell(self, taken: _Taken, segment: Segment) -> None:
        taken.oldest = min([taken.oldest, *(span.version for span in segment.versions)])
        self._segments.append(segment)


class SimulatedRolloutWorker(EngineHost):
    """The actor of a simulated engine: what the driver asks of it is the real thing."""

    engine: SimulatedEngine

    def __init__(self, rank: int, world_size: int, table: Table, on_update: OnUpdate = "recompute") -> None:
        super().__init__(lambda segment: f"{len(segment.token_ids)} tokens")
        write_output_to_log()
        self.engine = SimulatedEngine(table, on_update=on_update)

    async def use(self, version: int) -> None:
        """See `SimulatedEngine.use`."""
        self.engine.use(version)
