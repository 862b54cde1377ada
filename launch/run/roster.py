"""Everything that a run has started, in one place: loops, checkpoints and weight transfer look their groups up here."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from actors.group import ActorGroup
from algorithms.rewards.pool import RewardPool
from algorithms.rollouts.rollouts import Rollouts
from launch.run.elastic import Elastic
from launch.run.fleet import Fleet
from launch.run.reserved import Placement
from launch.run.stuck_transfer import free_senders
from launch.run.watched import NODE
from launch.tracking.now import Now

if TYPE_CHECKING:
    from launch.run.learners import Learners
    from launch.run.watch import Loss

W = TypeVar("W")


class Members(Mapping[str, ActorGroup[Any]]):
    """Groups of a run by name: those that there are whenever one is looked up."""

    def __init__(self, groups: Mapping[str, ActorGroup[Any]], names: tuple[str, ...] | None = None) -> None:
        """`names`: the only ones that it has (default: all)."""
        self._groups = groups
        self._names = names

    def __getitem__(self, name: str) -> ActorGroup[Any]:
        if self._names is not None and name not in self._names:
            raise KeyError(name)
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups if self._names is None else [name for name in self._names if name in self._groups])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def version(self) -> int:
        """How many of their processes were replaced so far; whoever keeps handles gets them anew when it moves."""
        return sum(group.version for group in self.values())


class Roster(Members):
    """The groups of a run, its reward processes and its rollouts; ended in `shutdown`, whatever happened.

    Example:
        roster["policy"].replace(1)
        rebuild((roster["policy"], partial(start_building, total_updates=100)))
    """

    def __init__(self, logs: str, now: Now | None = None) -> None:
        """`logs`: directory of the processes' output; `now`: takes notes of faults; without it nothing is restarted."""
        self._started: dict[str, ActorGroup[Any]] = {}
        super().__init__(self._started)  # the same dictionary: groups that are added later are members, too
        self._logs = logs
        self.pool: RewardPool | None = None
        self.rollouts: Rollouts | None = None
        self.now = now
        self.learners: Learners | None = None
        self.once_more: list[Callable[[], object]] = []
        """What is to be done again when the policy's processes are new."""
        self.fleet: Fleet | None = None
        self.elastic: Elastic | None = None

    def add(
        self,
        name: str,
        worker: type[W],
        timeout_s: float,
        placement: Placement,
        concurrency: dict[str, int] | None = None,
    ) -> ActorGroup[W]:
        """A group in its place, remembered for shutdown; `spawn` starts its processes."""
        assert name not in self._started, f"{name} would be forgotten, and its processes never ended"
        slots = placement.slots[name]
        group = ActorGroup(name, worker, slots, timeout_s=timeout_s, log_directory=self._logs, concurrency=concurrency)
        self._started[name] = group
        return group

    def members(self, *names: str) -> Members:
        """Those of the run's groups that have these names, now or later."""
        return Members(self, names)

    def hear(self, loss: "Loss") -> None:
        """A process of the run is no more."""
        if self.fleet and loss.group == "rollout":
            self.fleet.hear(loss.rank, loss.generation, loss.text)
            # What a holder sends to an engine nobody else waits for.
            if loss.noticed_by == NODE and "policy" in self and "holder" not in self:
                free_senders(self["policy"])

    def shutdown(self) -> None:
        """End all processes that the run has started."""
        if self.learners:
            self.learners.close()
        if self.elastic:
            self.elastic.close()
        if self.fleet:
            self.fleet.close()  # first, as it starts engines
        # Then: its thread calls engines and reward processes.
        if self.rollouts:
            self.rollouts.close()
        if self.pool:
            self.pool.close()
        for group in self.values():
            group.shutdown()
