"""From prompts to scored groups: start, score, replace what failed; here the death of an engine is handled.

    prompts --admit--> engines --ended--> reward pool --scores--> ready --take--> a step
                 ^------------ failed and stale groups are replaced ----'

A thread of its own keeps engines and reward pool busy; the loop only takes. With `max_staleness` 0 a step's prompts
start when the step asks for them: on-policy, and the same groups whatever ends first. With n (no setting reaches this
yet) they start up to n steps ahead, beside training, and a group of which any token is more than n versions old is
never given out. The driver sees lengths, statuses and rewards; tokens stay behind object references.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Condition, Thread

import numpy as np
from ray import ObjectRef

from actors.episodes import Episode, Prompt
from actors.files.parts import Entry, read_arrays, write_arrays
from actors.group import GroupError
from actors.rollout.types import Finished, Request, RolloutInfo, Sampling
from algorithms.rewards.pool import RewardPool
from algorithms.rewards.scores import Score, empty_scores
from algorithms.rollouts.admission import Loads
from algorithms.rollouts.engines import Ended, Engines, Lost
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup, episodes_of
from algorithms.rollouts.lane import Lane, Running, Wanted
from algorithms.rollouts.saved import group_arrays, groups_of

_LOOK_S = 1.0
"""Longest wait between two looks at deadlines."""
_CLOSE_S = 10.0
_MOST_STALE = 8
"""Groups that may be left out as too old for one that is asked for or made ahead."""
_FILE = "ahead.safetensors"
"""Of what was made ahead, in a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long engines may take, and how many samples may fail."""

    silence_s: float
    """Longest time in which an engine finishes none of what it has (rollout.timeout_s)."""
    prompt_s: float | None = None
    """Longest time that the responses to one prompt take (rollout.prompt_timeout_s)."""
    max_failed: float = 0.0
    """Share of a step's samples (reward.max_failed_fraction)."""
    attempts: int = 1
    """How many engines a prompt may be lost with before the run ends (no setting reaches this yet). With 1, the loss of
    an engine ends it where the engine had prompts; one that had none is done without, while another is left, until
    weights are sent to it."""


class Rollouts:
    """Everything between prompts and groups that can be trained on. Not for several callers at one time."""

    def __init__(
        self,
        engines: Engines,
        pool: RewardPool | None,
        prompts: Iterator[Prompt],
        sampling: Sampling,
        limits: Limits,
        *,
        groups_per_step: int,
        max_staleness: int = 0,
        prompt_of: Callable[[str, int], Prompt] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prompts` are drawn, one after the other, by the thread, and no earlier than they may start.

        `prompt_of` finds the prompt of a set's row again, for `load`.
        """
        self.engines = engines
        self.pool = pool
        self.limits = limits
        self.max_staleness = max_staleness
        ahead = max_staleness * groups_per_step
        self.training = Lane(prompts, sampling, Failures(limits.max_failed), ahead=ahead)
        self._evaluation: Lane | None = None
        self._prompt_of = prompt_of or _unknown
        self._clock = clock
        self._ids = count()
        self._running: dict[int, Running] = {}
        self._scoring: dict[int, Running] = {}
        self._loads = Loads(len(engines))
        self._heard = [0.0] * len(engines)
        """When an engine last ended something, or got something to do after nothing."""
        self._wanted: Wanted | None = None
        self._changed = Condition()
        self._error: BaseException | None = None
        self._closed = False
        self._thread: Thread | None = None

    def take(
        self,
        groups: int,
        version: int,
        *,
        seed: int,
        step_samples: int | None = None,
        goes_on: bool = False,
        told: Callable[[int], None] | None = None,
    ) -> list[ScoredGroup]:
        """The next groups to train on with weights of this version, in the order of their prompts.

        Fewer come only where the prompts end.

        Args:
            groups: how many.
            version: of the policy that trains on them.
            seed: for what starts now; with `max_staleness` 0 the samples depend on it and on the prompts alone.
            step_samples: how many samples the step has, of which `max_failed` may fail; default: those of `groups`.
            goes_on: this is a further part of a step, whose failures count on.
            told: hears how many are ready.

        Raises:
            GroupError: an engine died, cannot start, or is beyond a deadline, or too many samples failed in engines.
            RewardFailure: too many could not be scored.
        """
        lane = self.training
        self._ask(lane, groups, seed, step_samples, goes_on)
        with self._changed:
            self._wait_for(lane, groups, version, told)
            return lane.take(groups)

    def evaluate(
        self, prompts: list[Prompt], sampling: Sampling, *, seed: int, told: Callable[[int], None] | None = None
    ) -> tuple[list[ScoredGroup], Failures]:
        """Groups of all these prompts, but for those that fail; and what failed. Raises as `take` does."""
        lane = Lane(iter(prompts), sampling, Failures(self.limits.max_failed))
        with self._changed:
            self._evaluation = lane
        try:
            self._ask(lane, len(prompts), seed, None, goes_on=False)
            with self._changed:
                self._wait_for(lane, len(prompts), None, told)
                return lane.take(len(prompts)), lane.failures
        finally:
            self._evaluation = None

    def published(self, version: int) -> None:
        """The engines have weights of this version: what has become too old is replaced at once."""
        with self._changed:
            self.training.drop_older_than(version - self.max_staleness)
            self._changed.notify_all()

    @property
    def failures(self) -> Failures:
        """Of the step that is being taken, or was last."""
        return self.training.failures

    def save(self, directory: Path) -> Entry:
        """Write what was made ahead: groups that are ready, as arrays; of those on their way, which prompts they have.

        Raises GroupError when the episodes of a group are lost, or do not come in time.
        """
        with self._changed:
            lane = self.training
            ready = [lane.ready[order] for order in sorted(lane.ready)]
            # What these have sampled is not kept: their prompts start anew.
            ahead = [*self._running.values(), *self._scoring.values()]
            again = sorted((each for each in ahead if each.lane is lane), key=lambda each: each.order)
            taken = lane.taken
        if not ready and not again:
            return {"taken": taken}
        arrays = group_arrays(ready, [episodes_of(group, self.limits.silence_s) for group in ready])
        rows, sets = [each.prompt.index for each in again], [each.prompt.of_set for each in again]
        write_arrays(arrays | {"again": np.array(rows, dtype=np.int64)}, directory / _FILE)
        return {"taken": taken, "ready": len(ready), "again_sets": sets}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from what `save` has written: ready groups are given out first, the others start anew."""
        groups, again = list[ScoredGroup](), list[Prompt]()
        if "ready" in entry:
            arrays = read_arrays(directory / _FILE)
            groups = groups_of(arrays, self._prompt_of)
            rows = arrays["again"].tolist()
            again = [self._prompt_of(of_set, row) for of_set, row in zip(entry["again_sets"], rows, strict=True)]
        with self._changed:
            self.training.give_back(groups, again, int(entry["taken"]))

    def close(self) -> None:
        """End the thread; what is running is left to the engines."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_CLOSE_S)

    def _ask(self, lane: Lane, groups: int, seed: int, step_samples: int | None, goes_on: bool) -> None:
        samples = groups * lane.sampling.samples
        with self._changed:
            if goes_on:
                lane.samples_asked += samples
            else:
                lane.samples_asked = step_samples or samples
                lane.failures.begin()
            lane.asked += groups
            lane.seed = seed
            self._changed.notify_all()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="rollouts", daemon=True)
                self._thread.start()

    def _wait_for(self, lane: Lane, groups: int, version: int | None, told: Callable[[int], None] | None) -> None:
        """Wait, with the lock, until the lane can give so many groups; the thread keeps the deadlines."""
        least = None if version is None else version - self.max_staleness
        # `known` -1: told once in any case.
        known, before, self._wanted = -1, lane.stale, Wanted(lane, groups, least)
        self._wanted.drop_older()
        self._changed.notify_all()  # what was dropped is to be replaced
        try:
            while True:
                # Engines that still have old weights would replace what is stale by what is stale, for ever.
                if lane.stale - before > _MOST_STALE * (groups + lane.ahead):
                    raise GroupError(
                        f"rollout.take: {lane.stale - before} groups in a row are of weights older than version "
                        f"{least}: the engines do not have those that were published"
                    )
                if told and len(lane.ready) != known:
                    known = min(len(lane.ready), groups)
                    told(known)
                if self._error:
                    raise self._error
                if self._closed:
                    raise GroupError("rollout.take: the rollouts are closed")
                if lane.can_give(groups):
                    return
                self._changed.wait(_LOOK_S)
        finally:
            self._wanted = None

    def _lanes(self) -> list[Lane]:
        return [lane for lane in (self._evaluation, self.training) if lane]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    return
            try:
                self._round()
            except BaseException as error:  # Whoever waits for groups raises it.
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _has_work(self) -> bool:
        return self._closed or bool(self._running or self._scoring) or any(lane.room for lane in self._lanes())

    def _round(self) -> None:
        """Start what may start, wait for what happens next, and pass it on."""
        with self._changed:
            for lane in self._lanes():
                self._start(lane)
        if self._running or self._scoring:
            events = self.engines.wait(self.pool.refs() if self.pool else (), _LOOK_S)
        else:
            events = []  # the prompts have ended
        with self._changed:
            rollouts = self._collect([event for event in events if isinstance(event, Ended)])
            for event in events:
                self._lose(event) if isinstance(event, Lost) else self._receive(event, rollouts)
            for group, scores in self._answers():
                self._accept(group, scores)
            if self._wanted:
                self._wanted.drop_older()
            self._check_deadlines()
            if not self._wanted or self._wanted.is_news():
                self._changed.notify_all()

    def _start(self, lane: Lane) -> None:
        """Give each prompt that may start to the engine with the least to do."""
        drawn = lane.draw()
        if not drawn:
            return
        seed, lane.seed = lane.seed, None  # once, as it restarts the samplers
        now = self._clock()
        numbers = [next(self._ids) for _ in drawn]
        groups = [
            Running(number, number, lane, prompt, self._place(), now)
            for number, prompt in zip(numbers, drawn, strict=True)
        ]
        self._send(groups, seed)

    def _place(self) -> int:
        engine = self._loads.least()
        if self._loads[engine] == 1:  # it had nothing: its silence begins now
            self._heard[engine] = self._clock()
        return engine

    def _send(self, groups: list[Running], seed: int | None) -> None:
        """An engine gets its share in one call."""
        shares: dict[int, list[Request]] = {}
        for group in groups:
            request = Request(id=group.id, token_ids=group.prompt.token_ids, sampling=group.lane.sampling)
            shares.setdefault(group.engine, []).append(request)
            self._running[group.id] = group
        for engine in sorted(shares):
            self.engines.submit(engine, shares[engine], None if seed is None else seed + engine)

    def _collect(self, ended: list[Ended]) -> "dict[int, ObjectRef[list[Episode]]]":
        """Id of a request -> reference to the responses, of those that have some."""
        requests: dict[int, list[int]] = {}
        for event in ended:
            if event.finished.request in self._running and not event.finished.error:
                requests.setdefault(event.engine, []).append(event.finished.request)
        return {
            request: rollouts
            for engine, own in requests.items()
            for request, rollouts in zip(own, self.engines.collect(engine, own), strict=True)
        }

    def _receive(self, event: Ended, rollouts: "dict[int, ObjectRef[list[Episode]]]") -> None:
        group = self._running.pop(event.finished.request, None)
        if group is None:
            return  # it was lost with its engine, which has told of it all the same
        self._loads.ended(group.engine)
        self._heard[group.engine] = self._clock()
        group.infos = _infos(event.finished, group)
        failed = sum(info.status == "failed" for info in group.infos)
        group.rollouts = responses = rollouts[group.id]
        if failed:
            group.lane.on_the_way -= 1
            group.lane.failures.not_finished(failed, group.lane.samples_asked)
            return
        samples = len(group.infos)
        ticket = self.pool.submit(group.prompt, responses, samples) if self.pool else group.id
        self._scoring[ticket] = group

    def _lose(self, event: Lost) -> None:
        """What ran on a lost engine starts anew on others, where a prompt may be lost more than once."""
        self._loads.lost(event.engine)
        groups = [group for group in self._running.values() if group.engine == event.engine]
        if not self._loads.left or any(group.attempts >= self.limits.attempts for group in groups):
            raise event.error
        for group in groups:
            del self._running[group.id]
        now = self._clock()
        again = [
            Running(next(self._ids), group.order, group.lane, group.prompt, self._place(), now, group.attempts + 1)
            for group in groups
        ]
        self._send(again, None)  # no seed: samplers there are in the middle of other prompts

    def _answers(self) -> Iterator[tuple[Running, list[Score]]]:
        """Groups that the pool has scored; without a pool all of them, with nothing said yet."""
        if self.pool:
            for ticket, scores in self.pool.ready(0):
                yield self._scoring.pop(ticket), scores
            return
        for number in list(self._scoring):
            group = self._scoring.pop(number)
            yield group, empty_scores(len(group.infos))

    def _accept(self, group: Running, scores: list[Score]) -> None:
        lane = group.lane
        if any(score.status == "failed" for score in scores):
            lane.on_the_way -= 1
            lane.failures.not_scored(scores, lane.samples_asked)
        else:
            lane.accept(group.order, group.scored(scores))

    def _check_deadlines(self) -> None:
        now, limits = self._clock(), self.limits
        # Groups are in the order in which engines got them: the first one has waited longest, and what is late among
        # thousands is found without looking at all of them after every event.
        oldest = next(iter(self._running.values()), None)
        if oldest and limits.prompt_s is not None and now > oldest.given + limits.prompt_s:
            raise GroupError(
                f"rollout[{oldest.engine}].poll: the responses to data row {oldest.prompt.index} took more than "
                f"{limits.prompt_s:g} s (rollout.prompt_timeout_s)"
            )
        # An engine may have many groups queued: late is one that has finished none of them for so long.
        for engine, heard in enumerate(self._heard):
            if now > heard + limits.silence_s and self._loads[engine]:
                late = next(group for group in self._running.values() if group.engine == engine)
                raise GroupError(
                    f"rollout[{engine}].poll: nothing heard, while data row {late.prompt.index} waits, "
                    f"for {limits.silence_s:g} s (rollout.timeout_s)"
                )


def _unknown(of_set: str, row: int) -> Prompt:
    raise KeyError(f"row {row} of {of_set or 'the data'}")


def _infos(finished: Finished, group: Running) -> list[RolloutInfo]:
    if finished.error:
        raise GroupError(f"rollout[{group.engine}].submit: data row {group.prompt.index} was refused: {finished.error}")
    return finished.infos
