"""From prompts to scored groups: a thread starts and scores them (`flow.py`), the loop takes them.

    prompts --admit--> engines --ended--> reward pool, models --scores--> ready --take--> a step
                 ^------------ failed, stale and postponed groups are replaced ----'

A thread of its own keeps engines and reward pool busy; the loop only takes. With `max_staleness` 0 a step's prompts
start when the step asks for them: on-policy, and the same groups whatever ends first. With n they start up to n steps
ahead, beside training; a group of which any token is more than n versions old is never given out, and its prompt starts
again, a few times. With `Sampling.max_step_tokens` long responses go on from version to version (`held.py`). With tail
batching a step leaves its last groups to later ones. The driver sees lengths, statuses and rewards; tokens stay behind
object references.

An error ends the thread's round, and whoever takes groups raises it. Where it is the loss of ranks that the thread has
called, and they are brought back, it goes on as if it had not called them: engines work on meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Thread

from actors.episodes import Prompt
from actors.files.parts import Entry, SavedPart
from actors.group import Countdown, GroupError
from actors.rollout.types import Sampling
from algorithms.rewards.pool import RewardPool
from algorithms.rollouts.ahead import Ahead, read_ahead
from algorithms.rollouts.discards import Discards
from algorithms.rollouts.engines import Engines
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.flow import Flow
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup
from algorithms.rollouts.held import let_go
from algorithms.rollouts.lane import Drawn, Judge, Lane
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.model_pool import ModelPool
from algorithms.rollouts.ready_reads import NO_READS, ReadyReads
from algorithms.rollouts.tail import Tail
from algorithms.rollouts.wanted import Wanted

_LOOK_S = 1.0
"""Longest wait between two looks at deadlines."""
_SOON_S, _SOON_EACH_S = 0.05, 0.0005
"""The same where the loop may want something while engines work; with so much more for each engine, as a look costs."""
_CLOSE_S = 10.0
_MOST_STALE = 8
"""Groups that may be left out as too old for one that is asked for or made ahead."""


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
        groups_in_run: int | None = None,
        most_each: int | None = None,
        judge: Judge | None = None,
        most_drawn: int | None = None,
        tail: Tail | None = None,
        waits: bool = True,
        models: ModelPool | None = None,
        reads: ReadyReads = NO_READS,
        order: SavedPart | None = None,
        prompt_of: Callable[[str, int], Prompt] | None = None,
        go_on: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            engines: that sample.
            pool: functions and endpoints that score; None: there are none.
            prompts: drawn, one after the other, by the thread, and no earlier than they may start.
            sampling: of the responses to each of them.
            limits: deadlines, and what may fail.
            groups_per_step: that a step asks for.
            max_staleness: versions that a token may be older than the weights that are trained.
            groups_in_run: that all steps together ask for: none is made beyond them.
            most_each: samples with which an engine has enough, see `Flow`.
            judge, most_drawn, tail, waits: see `Lane`.
            models: reward models that score groups while others are generated; None: there are none, or the caller
                asks them.
            reads: models that read groups for training while others are generated.
            order: what `prompts` are drawn by, which `order_part` saves as it was when the rollouts were.
            prompt_of: finds the prompt of a set's row again, for `load`.
            go_on: whether engines can go on, after a `load`, from what samples have.
            clock: seconds.
        """
        self._flow = Flow(engines, pool, models, limits, clock, most_each, reads)
        self._clock = clock
        self.limits = limits
        self.max_staleness = max_staleness
        self.training = Lane(
            prompts,
            sampling,
            Failures(limits.max_failed),
            ahead=max_staleness * groups_per_step,
            groups_per_step=groups_per_step,
            attempts=limits.starts,
            most=groups_in_run,
            judge=judge,
            most_drawn=most_drawn,
            tail=tail,
            waits=waits,
            reads=reads,
        )
        self._evaluation: Lane | None = None
        self._order = order
        self._prompt_of = prompt_of or _unknown
        self._look_s = _LOOK_S
        if max_staleness or tail:
            self._look_s = max(_SOON_S, _SOON_EACH_S * len(engines))
        self._wanted: Wanted | None = None
        self._taken_with: int | None = None
        """Version of the last step."""
        self._changed = Condition()
        self._error: BaseException | None = None
        self._closed = False
        self._thread: Thread | None = None
        self._snapshot: Ahead | None = None
        self._go_on = go_on
        self.welcome: Callable[[], None] | None = None
        """Gives engines that are back the weights of the others; called by the thread, while the loop waits: nobody
        else then calls the policy's ranks, and the policy is what was published."""
        self.survive: Callable[[Callable[[], list[ScoredGroup]]], list[ScoredGroup]] = lambda wait: wait()
        """Waits for groups, and once more where ranks were lost that the thread has called and that are back; see
        `mending`."""
        self._groups_per_step = groups_per_step

    def take(
        self, groups: int, version: int, *, seed: int, told: Callable[[int], None] | None = None
    ) -> list[ScoredGroup]:
        """The next groups to train on with weights of this version: with `max_staleness` 0 in the order of their
        prompts, else the oldest first, and those of one age as they were complete.

        Fewer come only where the prompts end, or too few of them teach anything.

        Args:
            groups: how many.
            version: of the policy that trains on them.
            seed: for what starts now; with `max_staleness` 0 the samples depend on it and on the prompts alone.
            told: hears how many are ready.

        Raises:
            GroupError: an engine died, cannot start, or is beyond a deadline, or too many samples failed in engines.
            RewardFailure: too many could not be scored.
        """
        lane = self.training
        with self._changed:  # before anything starts: a resumed run may have what it would not have made
            if version == self._taken_with:
                let_go(lane)
            self._flow.version = self._taken_with = version
            lane.drop_older_than(version - self.max_staleness)
        # With n, too: samplers that only went on would draw anew in a resumed run what they have drawn before.
        self._ask(lane, groups, seed)
        return self.survive(partial(self._give, lane, groups, version, told))

    def evaluate(
        self, prompts: list[Prompt], sampling: Sampling, *, seed: int | None, told: Callable[[int], None] | None = None
    ) -> tuple[list[ScoredGroup], Failures]:
        """Groups of all these prompts, but for those that fail; and what failed. Raises as `take` does.

        With `seed`, samplers start anew from it; None where training rollouts go on beside.
        """
        lane = Lane(iter(prompts), sampling, Failures(self.limits.max_failed))
        with self._changed:
            self._evaluation = lane
        try:
            self._ask(lane, len(prompts), seed)
            return self.survive(partial(self._give, lane, len(prompts), None, told)), lane.failures
        finally:
            self._evaluation = None

    def published(self, version: int) -> None:
        """The engines have weights of this version: what has become too old is replaced at once."""
        with self._changed:
            self._flow.version = version
            self.training.drop_older_than(version - self.max_staleness)
            if self.max_staleness and not self.training.waits:  # else none is too old
                self._flow.give_up_older_than(version - self.max_staleness)
            self._changed.notify_all()

    @contextmanager
    def mending(self) -> Iterator[None]:
        """While ranks are brought back, the thread calls none; after it, it goes on where it had ended by an error of
        ranks, which it meets again if they are not back."""
        with self._flow.calls:
            yield
        with self._changed:
            if isinstance(self._error, GroupError) and not self._flow.is_halfway:
                self._error = None
                self._changed.notify_all()

    @property
    def engines(self) -> Engines:
        """Those that sample."""
        return self._flow.engines

    def had(self, engine: int) -> list[str]:
        """Names of the prompts that an engine had when it was lost last; once."""
        return self._flow.losses.had.pop(engine, [])

    @property
    def failures(self) -> Failures:
        """Of the step that is being taken, or was last."""
        return self.training.failures

    def report(self) -> tuple[Failures, Discards]:
        """What has failed, and what became of groups that were not given out, since the last report."""
        with self._changed:
            lane = self.training
            failures = copy(lane.failures)
            if lane.ahead:
                lane.count_failures_anew()
            return failures, lane.take_discards()

    @property
    def order_part(self) -> SavedPart:
        """What saves and loads the order that prompts are drawn by; to be saved before the rollouts are."""
        return _OrderPart(self)

    def take_snapshot(self) -> Entry:
        """Note what there is, for `save`; returns the entry of the order of the prompts at this moment."""
        with self._changed:
            lane = self.training
            unscored, begun = self._flow.so_far(lane)
            begun += lane.again
            if lane.tail:
                begun += [Drawn(prompt) for prompt in lane.tail.postponed]
            orders = list(lane.ready) if lane.ahead else sorted(lane.ready)
            ready, left_out = [lane.ready[each] for each in orders], list(lane.discards.left_out)
            lengths = dict(lane.tail.lengths) if lane.tail else {}
            self._snapshot = Ahead(ready, unscored, begun, left_out, lane.taken, self._groups_per_step, lengths)
            return self._order.save(Path()) if self._order else {}

    def save(self, directory: Path) -> Entry:
        """Write what there was when the snapshot was taken; raises as `Ahead.write` does."""
        if self._snapshot is None:
            self.take_snapshot()
        snapshot, self._snapshot = self._snapshot, None
        assert snapshot is not None, "it was just taken"
        return snapshot.write(directory, self.limits.silence_s)

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from what `save` has written: ready groups are given out first, the others go on; what this run
        would sample otherwise starts anew."""
        # Older checkpoints do not say it.
        entry = {"groups_per_step": self._groups_per_step} | entry
        found = read_ahead(directory, entry, self._prompt_of, go_on=self._go_on)
        found = found.fitting(self.training.sampling, self._groups_per_step)
        with self._changed:
            lane, begun = self.training, found.begun
            lane.discards.left_out += found.left_out
            if lane.tail:  # with it nothing is made ahead: what is here was postponed
                lane.tail.postponed.extend(each.prompt for each in begun)
                lane.tail.lengths.update(found.lengths)
                begun = []
            ready, unscored = found.ready, found.unscored
            if lane.judge:  # of a run that trained on all groups they were not judged: once scored again, they are
                ready = [each for each in found.ready if isinstance(each, ShapedGroup)]
                unscored = [*unscored, *(each for each in found.ready if not isinstance(each, ShapedGroup))]
            lane.give_back(ready, begun, found.taken)
            self._flow.score_again(lane, unscored)

    def close(self) -> None:
        """End the thread, if it ends within 10 s; what is running is left to the engines."""
        left, self._closed = Countdown(_CLOSE_S), True
        # The thread keeps the lock while engines get weights, which may hang; where it waits, it has let go of it.
        if self._changed.acquire(timeout=left.left_s):
            self._changed.notify_all()
            self._changed.release()
        if self._thread:
            self._thread.join(left.left_s)

    def _ask(self, lane: Lane, groups: int, seed: int | None) -> None:
        with self._changed:
            lane.ask(groups, seed)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="rollouts", daemon=True)
                self._thread.start()

    def _give(
        self, lane: Lane, groups: int, version: int | None, told: Callable[[int], None] | None
    ) -> list[ScoredGroup]:
        """The groups that were asked for, as soon as they are there; may be called again where it has raised."""
        with self._changed:
            self._wait_for(lane, groups, version, told)
            taken = lane.take(groups)
            if lane.tail:
                self._postpone(lane)
            return taken

    def _postpone(self, lane: Lane) -> None:
        """Leave all that a lane has on its way to later steps; with the lock."""
        late = self._flow.of(lane)
        self._flow.give_up(late)
        lane.postpone(late)
        self._changed.notify_all()

    def _wait_for(self, lane: Lane, groups: int, version: int | None, told: Callable[[int], None] | None) -> None:
        """Wait, with the lock, until the lane can give so many groups; the thread keeps the deadlines."""
        least = None if version is None else version - self.max_staleness
        # `known` -1: told once in any case.
        known, before, self._wanted = -1, lane.stale, Wanted(lane, groups, least, version)
        self._wanted.drop_older()
        self._flow.is_awaited = True
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
                if lane.can_give(groups, version):
                    return
                self._changed.wait(_LOOK_S)
        finally:
            self._wanted, self._flow.is_awaited = None, False

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
                    began, self._error = self._clock(), error
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._error is None or self._closed)
                    self._flow.put_off_deadlines(self._clock() - began)

    def _has_work(self) -> bool:
        return self._closed or self._flow.busy or any(map(self._flow.may_start, self._lanes()))

    def _round(self) -> None:
        """Start what may start, wait for what happens next, and pass it on."""
        with self._changed:
            if self.welcome and self._wanted:
                self.welcome()
            self._flow.start(self._lanes())
        events = self._flow.wait(self._look_s)
        with self._changed:
            self._flow.take_in(events)
            if self._wanted:
                self._wanted.drop_older()
            if not self._wanted or self._wanted.is_news():
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _OrderPart:
    """The order that prompts are drawn by: the thread draws while a checkpoint is written, and what is on its way then
    must be in exactly one of the two."""

    rollouts: Rollouts

    def save(self, directory: Path) -> Entry:
        return self.rollouts.take_snapshot()

    def load(self, directory: Path, entry: Entry) -> None:
        assert self.rollouts._order is not None, "there is one to load"
        self.rollouts._order.load(directory, entry)


def _unknown(of_set: str, row: int) -> Prompt:
    raise KeyError(f"row {row} of {of_set or 'the data'}")
