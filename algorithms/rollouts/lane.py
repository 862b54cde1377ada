"""The groups of one purpose, training or an evaluation: from prompts that may start to groups that can be taken."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ray import ObjectRef

from actors.episodes import Episode, Prompt
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.rewards.scores import Score
from algorithms.rollouts.admission import capacity
from algorithms.rollouts.ages import Ages
from algorithms.rollouts.discards import Discards, LeftOut
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import BegunGroup, ScoredGroup
from algorithms.rollouts.ready_reads import NO_READS, ReadyReads
from algorithms.rollouts.tail import Tail

Judge = Callable[[ScoredGroup], ScoredGroup | None]
"""The group as it is trained on; None where it teaches nothing and is replaced."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt that may start."""

    prompt: Prompt
    order: int | None = None
    """Where it has started before: its place among all that were drawn."""
    attempt: int = 1
    """The how-manieth time it starts."""
    begun: BegunGroup | None = None
    """What its samples have, from which they go on; None for one that starts anew."""


@dataclass(slots=True, eq=False)
class Running:
    """A group on an engine, held, or being scored."""

    id: int
    """Of its request."""
    order: int
    """Of its prompt, among all that were drawn."""
    lane: "Lane"
    prompt: Prompt
    engine: int = -1
    """-1 while it waits for one."""
    given: float = 0.0
    """When its engine got the prompt, by the clock."""
    engines: int = 1
    """Engines that have had it."""
    attempt: int = 1
    """The how-manieth time its prompt has started."""
    begun: BegunGroup | None = None
    """What its samples had before, see `Drawn`."""
    version: int = -1
    """Of the weights that engines had when one got it."""
    to_its_end: bool = False
    """Whether its samples are not held any more, as a step waits for them."""
    unwanted: bool = False
    """Whether nothing becomes of it any more: it ends, and is not heard."""
    infos: list[RolloutInfo] = field(default_factory=list)
    rollouts: ObjectRef[list[Episode]] | None = None

    @property
    def samples(self) -> int:
        """Responses to its prompt that an engine works on."""
        return self.begun.going_on if self.begun else self.lane.sampling.samples

    def scored(self, scores: list[Score]) -> ScoredGroup:
        """The finished group."""
        assert self.rollouts is not None, "they are collected before they are scored"
        return ScoredGroup(prompt=self.prompt, rollouts=self.rollouts, infos=self.infos, scores=scores)


class Lane:
    """Counts what has been asked for, is on its way, is ready and has been taken."""

    def __init__(
        self,
        prompts: Iterator[Prompt],
        sampling: Sampling,
        failures: Failures,
        *,
        ahead: int = 0,
        groups_per_step: int = 1,
        attempts: int = 1,
        most: int | None = None,
        judge: Judge | None = None,
        most_drawn: int | None = None,
        tail: Tail | None = None,
        waits: bool = True,
        reads: ReadyReads = NO_READS,
    ) -> None:
        """
        Args:
            prompts: drawn one after the other, and no earlier than they may start.
            sampling: of their responses.
            failures: counts those of a step.
            ahead: groups that may be made before somebody asks for them; above 0, the oldest are given out first, and
                those of one age as they were complete, else all in the order of their prompts.
            groups_per_step: as many of them are made ahead at first (see `_pace`).
            attempts: how often a prompt starts whose responses have become too old.
            most: groups that will be taken in all; None: no end is known.
            judge: which groups are trained on.
            most_drawn: with a judge, prompts that may start for one that is asked for.
            tail: lets a step leave prompts to a later one.
            waits: whether a step waits for groups that would be too old for the next one.
            reads: models that read what is ready.
        """
        self.sampling = sampling
        self.failures = failures
        self.ahead = ahead
        self.judge = judge
        self.tail = tail
        self.asked = 0
        self.samples_asked = groups_per_step * sampling.samples if ahead else 0
        """What failures are a share of: samples of the step, of the first one also before it is asked for."""
        self.seed: int | None = None
        """For the next prompts that start; each engine starts its sampler anew from it."""
        self.on_the_way = 0
        self.ready: dict[int, ScoredGroup] = {}
        """By the order in which their prompts were drawn, as they were completed."""
        self.taken = 0
        self.stale = 0
        """Groups that were too old to be trained on, in all."""
        self.discards = self._no_discards()
        self.ended = False
        """No prompt is left."""
        self.held: list[Running] = []
        """Groups on their way of which responses are held: see `algorithms/rollouts/held.py`."""
        self.again: deque[Drawn] = deque()
        """Prompts that start before others."""
        self.attempt_of: dict[int, int] = {}
        """Order of a group that is ready -> the how-manieth one of its prompt it is."""
        self.ages = Ages()
        self.waits = waits and ahead > 0
        self.reads = reads
        self.depth = min(ahead, groups_per_step)
        """Groups that are made ahead now, at most `ahead`."""
        self._least_depth = self.depth
        self._tried = 0
        """Samples that have ended on engines since failures were counted anew."""
        self._prompts = prompts
        self._attempts = attempts
        self._most = most
        self._extra = 0
        self._most_drawn = most_drawn
        self._may_draw = (most_drawn or 0) * ahead
        self._looked_for: int | None = None
        """Version that `drop_older_than` was asked for last."""
        self._not_looked_at: list[int] = []
        """Of those that are ready: since then."""

    def ask(self, groups: int, seed: int | None) -> None:
        """Somebody wants so many groups more."""
        if self.taken and len(self.ready) < groups:
            self._pace(-(-groups // 2))
        self.samples_asked = max(groups * self.sampling.samples, self._tried)
        if self.ahead == 0:
            self.failures.begin()
        self.asked += groups
        self.seed = seed
        most = self._most_drawn or 0
        # What a step did not need is not the next one's: where nothing teaches any more, a step would draw for ever.
        self._may_draw = min(self._may_draw + groups * most, (groups + self.ahead) * most)
        if self.tail:
            left = None if self._most is None else self._most - self.taken - len(self.tail.postponed)
            begun, self._extra = self.tail.begin(groups, left)
            self.again.extend(Drawn(prompt) for prompt in begun)
            self._may_draw += self._extra  # as many are not for this step

    @property
    def room(self) -> int:
        """How many prompts may start now."""
        waiting = self.on_the_way + len(self.ready)
        room = capacity(self.asked + self._extra, self.depth, self.taken, waiting)
        if self._most is not None:
            room = min(room, self._most - self.taken - waiting)
        if self._most_drawn is not None:
            room = min(room, self._may_draw)
        return max(0, min(room, len(self.again)) if self.ended else room)

    def draw(self) -> list[Drawn]:
        """The prompts that may start now."""
        room = self.room
        drawn = [self._young(self.again.popleft()) for _ in range(min(room, len(self.again)))]
        if self.tail:
            drawn += map(Drawn, self.tail.before_next_pass(room - len(drawn)))
        drawn += map(Drawn, islice(self._prompts, room - len(drawn)))
        self.ended = self.ended or len(drawn) < room  # only an iterator that has ended gives fewer
        self.on_the_way += len(drawn)
        self._may_draw -= len(drawn)
        if self.tail:
            order = self.tail.longest_first([each.prompt for each in drawn])
            return [drawn[place] for place in order]
        return drawn

    def accept(self, order: int, group: ScoredGroup, attempt: int = 1) -> None:
        """A group is no longer on its way, but ready; or, where it teaches nothing, replaced."""
        self.on_the_way -= 1
        if self.tail:
            self.tail.note(group.prompt, group.infos)
        judged = self.judge(group) if self.judge else group
        if judged is None:
            self.ages.remove(order)
            self.discards.alike += 1
            self.discards.left_out.append(LeftOut(group.prompt, "alike"))
            self.samples_asked += self.sampling.samples
            return
        self.ready[order] = judged
        self.ages.complete(order)
        self.attempt_of[order] = attempt
        self._not_looked_at.append(order)
        # With tail batching the first to end are taken, else all that were drawn, and none is drawn beyond them.
        first = len(self.ready) + (0 if self.tail else self.on_the_way) <= self.asked - self.taken
        self.reads.submit(judged, certain=first and not self.ahead)

    def fail(self, prompt: Prompt, order: int) -> None:
        """A group is no longer on its way, as some of its responses failed."""
        self.on_the_way -= 1
        self.ages.remove(order)
        self.discards.left_out.append(LeftOut(prompt, "failed"))

    def hold(self, group: Running, version: int) -> None:
        """Some of a group's responses have what one version of the weights may sample; engines have this one."""
        assert group.begun is not None, "they have begun"
        self.held.append(group)
        if group.version >= version:  # else it goes on at once
            self.discards.held = (self.discards.held or 0) + group.begun.going_on
        self._abort_held()

    def abort(self, group: Running) -> None:
        """A group is no longer on its way, as it was ended for its age."""
        self.on_the_way -= 1
        self.discards.aborted += 1
        self._start_again(group.prompt, group.order, group.attempt)

    def postpone(self, running: Iterable[Running]) -> None:
        """Leave what is on its way, and what is ready beyond what was taken, to a later step."""
        assert self.tail is not None, "only with tail batching"
        late = [(each.order, each.prompt) for each in running] + [(n, each.prompt) for n, each in self.ready.items()]
        for group in self.ready.values():
            self.reads.forget(group)
        self.ready.clear()
        self.attempt_of.clear()
        self.ages.clear()
        self.on_the_way = 0
        self._extra = 0
        self.tail.postponed.extend(prompt for _, prompt in sorted(late, key=lambda pair: pair[0]))
        # What was to start, and did not, waits no longer than the others.
        self.tail.postponed.extendleft(each.prompt for each in reversed(self.again))
        self.again.clear()
        self.discards.postponed += len(late)

    def can_give(self, groups: int, version: int | None = None) -> bool:
        """Whether so many are ready, or as many as there will ever be; where steps wait, those that a step of this
        version must take are among them."""
        if len(self.ready) < groups:
            return not self.on_the_way and not self.room
        if not self.waits or version is None:
            return True
        return self.ages.enough_are_complete(version, self.most_stale, groups)

    @property
    def most_stale(self) -> int:
        """Versions that a token may be older than the weights that are trained."""
        return self.ahead // max(1, self._least_depth)

    def take(self, groups: int) -> list[ScoredGroup]:
        """The first of those that are ready, at most so many."""
        numbers = self._in_turn(groups)[:groups]
        self.taken += len(numbers)
        for number in numbers:
            self.attempt_of.pop(number, None)
            self.ages.remove(number)
        found = [self.ready.pop(number) for number in numbers]
        # What a step could not get is not made after it: on-policy it would run beside training.
        self.asked -= groups - len(numbers)
        if len(self.ready) >= groups / 2:
            self._pace(-max(1, groups // 4))
        return found

    def give_back(self, groups: Sequence[ScoredGroup], again: Sequence[Drawn], taken: int) -> None:
        """Go on from what a lane before has had: groups that are ready, and prompts that are to start before others."""
        # Below 0, and so before all that are drawn from now on.
        self.ready = {order - len(groups): group for order, group in enumerate(groups)}
        self._looked_for = None
        self.again.extend(again)
        self.taken = taken
        # What was asked for was given; what is ready, or was running, has been made ahead.
        self.asked = taken

    def drop_older_than(self, version: int) -> None:
        """Leave out ready groups of which a token was sampled by weights older than this; their prompts start again."""
        # Asked after every event: those that were young enough for this version still are.
        new = [number for number in self._not_looked_at if number in self.ready]
        for number in new if version == self._looked_for else list(self.ready):
            oldest = self.ready[number].oldest_version
            if oldest is not None and oldest < version:
                group = self.ready.pop(number)
                self.reads.forget(group)
                self.discards.dropped += 1
                self._start_again(group.prompt, number, self.attempt_of.pop(number, 1))
        news, self._looked_for, self._not_looked_at = version != self._looked_for, version, []
        if news:
            self._abort_held()

    def take_discards(self) -> Discards:
        """What was counted since the last call, which is counted anew from now on, as failures are."""
        discards, self.discards = self.discards, self._no_discards()
        return discards

    def _no_discards(self) -> Discards:
        return Discards(held=None if self.sampling.max_step_tokens is None else 0)

    def sampled(self) -> None:
        """A group has ended on its engine, not for its age."""
        if self.ahead:  # beside one step more than its groups may end
            self._tried += self.sampling.samples
            self.samples_asked = max(self.samples_asked, self._tried)

    def count_failures_anew(self) -> None:
        """Of what is made ahead, failures are no step's: those since the last call are a share of what has ended since
        then, or of a step if that is more."""
        self.failures.begin()
        self._tried = 0

    def _young(self, drawn: Drawn) -> Drawn:
        """Without what it has begun where that is too old already, and would be gone on with for nothing."""
        return replace(drawn, begun=None) if drawn.begun and drawn.begun.is_older(self._looked_for) else drawn

    def is_stale(self, group: Running) -> bool:
        """Whether what a group goes on from is too old to be trained on."""
        return group.begun is not None and group.begun.is_older(self._looked_for)

    def _abort_held(self) -> None:
        old = [group for group in self.held if self.is_stale(group)]
        self.held = [group for group in self.held if group not in old] if old else self.held
        for group in old:
            self.abort(group)

    def _pace(self, change: int) -> None:
        """Make more or less ahead: more when a step has to wait, less when half of the next one is ready already.

        The bound is for the responses that take longest; what keeps training busy is often less, and no older than
        need be.
        """
        self.depth = min(self.ahead, max(self._least_depth, self.depth + change))

    def _start_again(self, prompt: Prompt, order: int, attempt: int) -> None:
        self.stale += 1
        self.ages.remove(order)
        if attempt < self._attempts:
            self.again.append(Drawn(prompt, order, attempt + 1))
        else:  # one that is too hard must not come again for ever
            self.discards.left_out.append(LeftOut(prompt, "stale"))

    def _in_turn(self, groups: int) -> list[int]:
        if self.ahead == 0:
            # In the order of their prompts: by when they ended, steps would be of short responses first.
            return sorted(list(self.ready)[:groups] if self.tail else self.ready)
        # Those first that are too old the soonest; sorted keeps the order of completion among those of one age.
        return sorted(self.ready, key=self._deadline)

    def _deadline(self, order: int) -> int:
        started, oldest = self.ages.of(order), self.ready[order].oldest_version
        known = [each for each in (started, oldest) if each is not None]
        return min(known, default=0)
