"""Gradients of finished groups while others are generated (`algorithm.overlap_gradients`): still on-policy.

    rollouts --group is ready--> waits --all that wait, in one call per rank--> ranks read it, and add its gradient
    loop     --a step's groups--> ranks add the gradient of the rest, divide by the step's counts, and step

In a step of one update, the gradient is a sum over its groups, each of which has its advantages from itself; weights do
not move until all of it is there. Only what the loss is divided by, such as the tokens of the step, is known at the
end: until then the sum is not divided. RollPacker does so for long tails (arXiv 2509.21009).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from ray import ObjectRef

from algorithms.division.deals import Episodes
from algorithms.division.work import RankWork
from algorithms.rl.read_passes import Outstanding
from algorithms.rollouts.groups import ScoredGroup

_MOST_OUT = 2
"""Calls that ranks have at one time: while one is computed, others read for the next, and none waits for the driver."""


@dataclass(frozen=True, kw_only=True)
class Accumulated:
    """Some groups of a step, whose gradient ranks add to its update."""

    groups: Sequence[ScoredGroup]
    work: list[RankWork]
    """Of each rank."""
    trained_tokens: int
    calls: Outstanding


Accumulate = Callable[[Sequence[ScoredGroup]], Accumulated]
"""Lets ranks add the gradient of some groups; raises GroupError."""


class OverlappedGradients:
    """What is added to a step's update beside rollouts: the thread of the rollouts sends it, the loop then has the rest
    added. See `algorithms.rollouts.ready_reads.ReadyReads`."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: with which a rank computes beside rollouts; None: with all that it has."""
        self.threads = threads
        self._accumulate: Accumulate | None = None
        """None while no step is sampled."""
        self._waiting: dict[Episodes, ScoredGroup] = {}
        """By the reference to the responses, which a group has from its end on."""
        self._to_come = 0
        """Groups that are not ready yet. The last ones are not sent: the loop has them computed with all threads."""
        self._sent: list[Accumulated] = []
        self._out: deque[Accumulated] = deque()
        """Those of it that ranks still have."""
        self._lock = Lock()

    @contextmanager
    def overlapping(self, accumulate: Accumulate, wanted: int) -> Iterator[None]:
        """While the loop waits for the groups of a step, so many as are `wanted`."""
        with self._lock:
            self._accumulate, self._waiting, self._sent = accumulate, {}, []
            self._to_come = wanted
        try:
            yield
        finally:
            with self._lock:
                self._accumulate = None
                self._out.clear()  # from here on, who takes what was sent waits for it

    def submit(self, group: ScoredGroup, *, certain: bool) -> None:
        """Take a group that is ready, if it is sure to be trained on: nothing can be taken out of a sum again."""
        with self._lock:
            if self._accumulate and certain:
                self._waiting[group.rollouts] = group
                self._to_come -= 1

    def forget(self, group: ScoredGroup) -> None:
        """A group is not trained on."""
        with self._lock:
            if self._waiting.pop(group.rollouts, None):
                self._to_come += 1  # another one takes its place

    @property
    def busy(self) -> bool:
        """Whether anything is to be sent, or waited for."""
        with self._lock:
            return bool(self._accumulate and (self._out or (self._waiting and self._to_come)))

    def send(self) -> None:
        """Give the ranks all that waits, if they have not enough. May wait for engines, which split groups for ranks.
        Raises GroupError."""
        with self._lock:
            if not self._accumulate:
                return
            self._look()
            if not self._waiting or not self._to_come or len(self._out) >= _MOST_OUT:
                return
            groups, self._waiting = list(self._waiting.values()), {}
            sent = self._accumulate(groups)
            self._sent.append(sent)
            self._out.append(sent)

    def _look(self) -> None:
        """Note what ranks have done, one call after the other: none is late before those ahead of it have ended."""
        while self._out:
            self._out[0].calls.look()
            if self._out[0].calls:
                return
            self._out.popleft()
            if self._out:
                self._out[0].calls.begin()

    def refs(self) -> list[ObjectRef]:
        """What is waited for."""
        with self._lock:
            return self._out[0].calls.refs if self._accumulate and self._out else []

    def take(self, groups: Sequence[ScoredGroup]) -> list[Accumulated]:
        """What was sent, all of it of these groups, those of the step.

        Raises:
            RuntimeError: the update has the gradient of another group.
        """
        with self._lock:
            known = {group.rollouts for group in groups}
            for group in (each for sent in self._sent for each in sent.groups):
                if group.rollouts not in known:
                    raise RuntimeError(
                        f"the update has the gradient of data row {group.prompt.index}, which is not in its step"
                    )
            sent, self._sent = self._sent, []
            return sent
