"""From prompts that may start to scored groups: who has what, and what happens next; here the death of an engine is
handled.

    lanes --start--> engines --Ended--> reward pool --scores--> reward models --scores--> lanes
      ^------- held -----'  ^---- abort what is postponed, or too old ----'

One thread makes these calls; the caller keeps its lock wherever lanes change, and not while it waits.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from threading import Lock
from typing import Any

from ray import ObjectRef

from actors.group import GroupError
from actors.group_errors import DataLost
from actors.rollout.types import Begun, Finished, Request
from algorithms.rewards.pool import RewardPool
from algorithms.rewards.scores import Score, empty_scores
from algorithms.rollouts.admission import Loads
from algorithms.rollouts.engines import Back, Ended, Engines, Event, Had, Lost, Out, Refused
from algorithms.rollouts.groups import BegunGroup, ScoredGroup
from algorithms.rollouts.held import going_on, sampling_of
from algorithms.rollouts.lane import Drawn, Lane, Running
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.losses import Losses, infos_of
from algorithms.rollouts.membership import Parted
from algorithms.rollouts.model_pool import ModelPool
from algorithms.rollouts.ready_reads import NO_READS, ReadyReads

ENOUGH = 2
"""Samples of an engine for each that it can work on at one time, where others wait for the first that has room: a group
counts whole until its last response ends, and with no more the slots of those that have ended stay empty (in virtual
time, with 32 slots and groups of 16, twice as many make steps of 25 s of 41)."""
_TELLS_S = 30.0
"""Longest wait for engines to say what they have so far."""


class Flow:
    """Everything that is on its way."""

    def __init__(
        self,
        engines: Engines,
        pool: RewardPool | None,
        models: ModelPool | None,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        most_each: int | None = None,
        reads: ReadyReads = NO_READS,
    ) -> None:
        """`most_each`: samples with which an engine has enough, others wait for the first that has room; None: each
        gets its share at once, which it then works on in the same order every time."""
        self.engines = engines
        self.pool = pool
        self.models = models
        self.reads = reads
        self.limits = limits
        self._clock = clock
        self._most_each = most_each
        self.version = 0
        """Of the weights that engines have: nothing that starts now is older."""
        self._ids = count()
        self._waiting: deque[Running] = deque()
        """For an engine with room."""
        self._running: dict[int, Running] = {}
        self._scoring: dict[int, Running] = {}
        self._judging: dict[int, Running] = {}
        """What reward models have."""
        self._unwanted: list[Running] = []
        """What engines are still to be told to end."""
        self._too_old: int | None = None
        """Version that engines are still to be told of: requests with older tokens shall end."""
        self._loads = Loads(len(engines))
        self._heard = [0.0] * len(engines)
        """When an engine last ended something, or got something to do after nothing."""
        self.losses = Losses(limits, clock)
        self.calls = Lock()
        """Held while ranks are told to score and to read, and by whoever brings ranks back."""
        self.is_awaited = False
        """Whether the loop waits for groups."""
        self.is_halfway = False
        """Whether some of what has happened was passed on, and the rest was not: an error in between is the end."""

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, and not held."""
        return bool(self._running or self._waiting or self._scoring or self._judging or self.reads.busy)

    def may_start(self, lane: Lane) -> bool:
        """Whether a lane has anything to start."""
        return bool(lane.room or going_on(lane, self.version))

    def of(self, lane: Lane) -> list[Running]:
        """What is on its way for a lane, in the order of the prompts."""
        everything = (*self._running.values(), *self._waiting, *self._scoring.values(), *self._judging.values())
        own = [each for each in everything if each.lane is lane and not each.unwanted]
        return sorted([*own, *lane.held], key=lambda each: each.order)

    def so_far(self, lane: Lane) -> tuple[list[ScoredGroup], list[Drawn]]:
        """What is on its way for a lane: groups that only lack scores, and prompts with what their samples have so far,
        or had when they started where an engine does not say it soon; it goes on all the same."""
        own = self.of(lane)
        asked: dict[int, list[int]] = {}
        for group in own:
            if group.id in self._running:
                asked.setdefault(group.engine, []).append(group.id)
        found: dict[int, BegunGroup] = {}
        # An engine that hangs or dies just now must not take the checkpoint with it: whoever waits for it says so.
        with suppress(GroupError):
            found = self.engines.progress(asked, min(_TELLS_S, self.limits.silence_s)) if asked else {}
        unscored = [group.scored(empty_scores(len(group.infos))) for group in own if group.rollouts is not None]
        begun = [
            # What has just ended, and was not heard yet, starts anew.
            Drawn(group.prompt, None, group.attempt, found.get(group.id, group.begun))
            for group in own
            if group.rollouts is None
        ]
        return unscored, begun

    def score_again(self, lane: Lane, groups: Sequence[ScoredGroup]) -> None:
        """Let groups that are complete be scored, as if they had just ended."""
        for group in groups:
            number = next(self._ids)
            running = Running(number, number, lane, group.prompt, infos=group.infos, rollouts=group.rollouts)
            lane.on_the_way += 1
            ticket = self.pool.submit(group.prompt, group.rollouts, len(group.infos)) if self.pool else number
            self._scoring[ticket] = running

    def give_up(self, groups: Sequence[Running]) -> None:
        """Nothing shall become of these groups."""
        for group in groups:
            group.unwanted = True
        self._waiting = deque(group for group in self._waiting if not group.unwanted)
        # Told when the thread comes round: it alone speaks to engines.
        self._unwanted += [group for group in groups if group.id in self._running]

    def give_up_older_than(self, version: int) -> None:
        """Groups with tokens of older weights shall end, wherever they are."""
        self._too_old = version

    def start(self, lanes: Sequence[Lane]) -> None:
        """Give engines what may start now, and tell them what shall end."""
        self._end_unwanted()
        for lane in lanes:
            self._start(lane)
        if self._waiting:
            self._send([], None)

    def wait(self, seconds: float) -> list[Event]:
        """What happens next; nothing, at once, where nothing is on its way."""
        if not self.busy:  # the prompts have ended
            return []
        if self.calls.acquire(blocking=False):  # else later
            try:
                for each in filter(None, (self.models, self.reads)):
                    each.send()
            finally:
                self.calls.release()
        others = [ref for each in (self.pool, self.models, self.reads) if each for ref in each.refs()]
        return self.engines.wait(others, seconds)

    def take_in(self, events: Sequence[Event]) -> None:
        """Pass on what has happened. Raises GroupError and RewardFailure, as `Rollouts.take` says."""
        self.is_halfway = True
        rollouts = self._collect([event for event in events if isinstance(event, Ended)])
        for event in events:
            self._hear(event, rollouts)
        for group, scores in self._answers():
            self._score(group, scores)
        self.is_halfway = False
        for group, scored in self._judged():
            self._accept(group, scored)
        self._check_deadlines()

    def _hear(self, event: Event, rollouts: "dict[int, ObjectRef[Any]]") -> None:
        match event:
            case Ended():
                self._receive(event, rollouts)
            case Lost():
                self._lose(event)
            case Refused(_, requests):
                self._send_again([self._running[each] for each in requests if each in self._running], {})
            case Out(engine):
                self._loads.out(engine)
            case Back(engine):
                self._loads.back(engine)
                self._heard += [0.0] * (engine + 1 - len(self._heard))
                self._heard[engine] = self._clock()

    def _end_unwanted(self) -> None:
        """Tell engines what is postponed, and what has become too old."""
        shares: dict[int, list[int]] = {}
        for group in self._unwanted:
            if group.id in self._running:  # else it has ended meanwhile
                shares.setdefault(group.engine, []).append(group.id)
        for engine in sorted(shares):
            self.engines.abort(engine, shares[engine])
        if self._too_old is not None:
            for engine in sorted({group.engine for group in self._running.values()}):
                self.engines.abort_older(engine, self._too_old)
        self._unwanted, self._too_old = [], None

    def _start(self, lane: Lane) -> None:
        """Give each group that goes on, and each prompt that may start, to the engine with the least to do."""
        if again := going_on(lane, self.version):
            orders = {group.order for group in again}
            lane.held = [group for group in lane.held if group.order not in orders]
            # Before prompts that wait for an engine with room, and not before an evaluation.
            again = [replace(group, id=next(self._ids)) for group in again]
            first = [group for group in self._waiting if not group.lane.ahead]
            self._waiting = deque([*first, *again, *(group for group in self._waiting if group.lane.ahead)])
            self._send([], None)
        drawn = lane.draw()
        if not drawn:
            return
        seed, lane.seed = lane.seed, None  # once, as it restarts the samplers
        groups = list[Running]()
        for each in drawn:
            number = next(self._ids)
            order = number if each.order is None else each.order
            groups.append(Running(number, order, lane, each.prompt, attempt=each.attempt, begun=each.begun))
        self._send(groups, seed)

    def _place(self, group: Running) -> bool:
        """Choose an engine; whether there is one with room."""
        # Samples, not groups: those of an evaluation are often of one, and would leave slots empty.
        engine, samples = self._loads.least(self._most_each, group.samples), group.samples
        if engine is None:
            return False
        group.engine, group.given = engine, self._clock()
        if self._loads[engine] == samples:  # it had nothing: its silence begins now
            self._heard[engine] = group.given
        return True

    def _send(self, groups: list[Running], seed: int | None) -> None:
        """Give engines what waits, and these groups; an engine gets its share in one call."""
        # An evaluation, which training waits for, before what is made ahead.
        self._waiting.extendleft([group for group in reversed(groups) if not group.lane.ahead])
        self._waiting.extend(group for group in groups if group.lane.ahead)
        shares: dict[int, list[Request]] = {}
        begun: dict[int, dict[int, ObjectRef[tuple[Begun, ...]]]] = {}
        while self._waiting:
            group = self._waiting[0]
            if stale := group.lane.is_stale(group):  # new weights have come while it waited
                group.lane.abort(group)
            elif not self._place(group):
                break
            self._waiting.popleft()
            if stale:
                continue
            oldest = group.begun.oldest_version if group.begun else None
            group.lane.ages.start(group.order, self.version if oldest is None else min(self.version, oldest))
            group.version = self.version
            sampling = sampling_of(group, self.version)
            request = Request(id=group.id, token_ids=group.prompt.token_ids, sampling=sampling)
            shares.setdefault(group.engine, []).append(request)
            if group.begun:
                begun.setdefault(group.engine, {})[group.id] = group.begun.samples
            self._running[group.id] = group
        for engine in sorted(shares):
            own_seed = None if seed is None else seed + engine
            self.engines.submit(engine, shares[engine], own_seed, begun.get(engine, {}))

    def _collect(self, ended: list[Ended]) -> "dict[int, ObjectRef[Had]]":
        """Id of a request -> reference to the responses, or to what held ones have, of those that have some."""
        requests: dict[int, list[int]] = {}
        for event in ended:
            # Also what nobody wants: where they are, nothing else would let go of them.
            if event.finished.request in self._running and not event.finished.error and not event.finished.aborted:
                requests.setdefault(event.engine, []).append(event.finished.request)
        return {
            request: rollouts
            for engine, own in requests.items()
            for request, rollouts in zip(own, self.engines.collect(engine, own), strict=True)
        }

    def _receive(self, event: Ended, rollouts: "dict[int, ObjectRef[Any]]") -> None:
        group = self._running.get(event.finished.request)
        if group is None:
            return  # it was lost with its engine, which has told of it all the same
        if again := bool(event.finished.error and group.begun):
            event = Ended(event.engine, Finished(request=group.id, infos=[]))
        # It stays where it is refused, which ends the run: a checkpoint of the step that is made meanwhile has it.
        infos = infos_of(event.finished, group)
        self._heard[group.engine] = self._clock()
        if again:
            # Other settings than then may refuse what was sampled under them, such as a stop string: then from nothing.
            self._send_again([group], {group.id: None})
            return
        del self._running[group.id]
        self._loads.ended(group.engine, group.samples)
        if event.finished.held and not group.unwanted:
            group.begun = BegunGroup(samples=rollouts[group.id], infos=event.finished.held)
            group.lane.hold(group, self.version)
            return
        group.infos = infos
        if group.unwanted:
            if group.lane.tail:
                group.lane.tail.note(group.prompt, group.infos)
            return
        if event.finished.aborted:
            group.lane.abort(group)
            return
        group.lane.sampled()
        failed = sum(info.status == "failed" for info in group.infos)
        group.rollouts = responses = rollouts[group.id]
        if failed:
            group.lane.fail(group.prompt, group.order)
            group.lane.failures.not_finished(failed, group.lane.samples_asked)
            return
        samples = len(group.infos)
        ticket = self.pool.submit(group.prompt, responses, samples) if self.pool else group.id
        self._scoring[ticket] = group

    def _lose(self, event: Lost) -> None:
        """What ran on a lost engine goes on, on others, from what is known that it had, or starts anew there."""
        self._loads.out(event.engine)
        groups = [group for group in self._running.values() if group.engine == event.engine]
        self.losses.take_in(event, [group for group in groups if not group.unwanted], left=self._loads.left)
        for group in groups:
            group.engines += not isinstance(event.error, Parted)
        # What they would go on from may be what is gone.
        gone = isinstance(event.error, DataLost)
        self._send_again(groups, {group.id: None for group in groups} if gone else event.begun)

    def _send_again(self, groups: Sequence[Running], begun: Mapping[int, BegunGroup | None]) -> None:
        """Give groups to engines once more, to go on from what they have begun, of which some is known to be other than
        when they were given before. No seed: samplers there may be in the middle of other prompts."""
        for group in groups:
            del self._running[group.id]
            self._loads.ended(group.engine, group.samples)
        wanted = [group for group in groups if not group.unwanted]
        again = [replace(each, id=next(self._ids), begun=begun.get(each.id, each.begun)) for each in wanted]
        self._send(again, None)

    def _answers(self) -> Iterator[tuple[Running, list[Score]]]:
        """Groups that the pool has scored; without a pool all of them, with nothing said yet."""
        if self.pool:
            for ticket, scores in self.pool.ready(0):
                yield self._scoring.pop(ticket), scores
            return
        for number in list(self._scoring):
            group = self._scoring.pop(number)
            yield group, empty_scores(len(group.infos))

    def _score(self, group: Running, scores: list[Score]) -> None:
        """Take in what functions and endpoints say of a group."""
        lane = group.lane
        if group.unwanted:
            return
        if any(score.status == "failed" for score in scores):
            lane.fail(group.prompt, group.order)
            lane.failures.not_scored(scores, lane.samples_asked)
        elif self.models:
            self._judging[group.id] = group
            self.models.submit(group.id, group.scored(scores))
        else:
            self._accept(group, group.scored(scores))

    def _judged(self) -> Iterator[tuple[Running, ScoredGroup]]:
        """Groups that reward models have scored, too."""
        for number, scored in self.models.ready() if self.models else ():
            yield self._judging.pop(number), scored

    def _accept(self, group: Running, scored: ScoredGroup) -> None:
        if not group.unwanted:
            group.lane.accept(group.order, scored, group.attempt)

    def put_off_deadlines(self, seconds: float) -> None:
        """Nobody has listened to engines for so long."""
        self._heard = [heard + seconds for heard in self._heard]
        for group in self._running.values():
            group.given += seconds

    def _check_deadlines(self) -> None:
        now, limits = self._clock(), self.limits
        # Beside training nobody gives weights to those that are back; they get them as soon as the loop waits.
        self.losses.check(left=self._loads.left or (0 if self.is_awaited else self.engines.lacking_weights()))
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
                self._heard[engine] = now
                late = next(group for group in self._running.values() if group.engine == engine)
                text = f"nothing heard, while data row {late.prompt.index} waits, for {limits.silence_s:g} s"
                self.engines.condemn(engine, GroupError(f"rollout[{engine}].poll: {text} (rollout.timeout_s)"))
