"""The engines as the driver sees them: requests go to one, what ended comes from any, losses and returns are told.

Behind the protocol are the actors of a group (`ray_engines.py`); in tests of what depends on time, engines with a clock
of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ray import ObjectRef

from actors.episodes import Episode
from actors.group import GroupError
from actors.rollout.types import Begun, EngineStats, Finished, Request
from algorithms.rollouts.groups import BegunGroup

BegunOf = Mapping[int, "ObjectRef[tuple[Begun, ...]]"]
"""Request -> what its samples have."""
NONE_BEGUN: BegunOf = {}
Had = list[Episode] | tuple[Begun, ...]
"""The responses to a request, or what each of its samples has where it is held."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request has ended on an engine, or is held."""

    engine: int
    finished: Finished


@dataclass(frozen=True, slots=True)
class Lost:
    """An engine has died or cannot go on; what was running on it never ends."""

    engine: int
    error: GroupError
    begun: Mapping[int, BegunGroup] = field(default_factory=dict)
    """Request -> what its samples are known to have had, of those of which that is known."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An engine has not taken requests, as it lacks weights; nothing is wrong with them."""

    engine: int
    requests: list[int]


@dataclass(frozen=True, slots=True)
class Out:
    """An engine goes on with what it has, and gets no more before it is `Back`."""

    engine: int


@dataclass(frozen=True, slots=True)
class Back:
    """An engine gets requests again, or for the first time."""

    engine: int


Event = Ended | Lost | Refused | Out | Back


class Engines(Protocol):
    """Several engines. Only `wait` and `progress` wait; one thread makes them all but `progress` and `stats`."""

    def __len__(self) -> int:
        """Those that `wait` has told of, and those that there were at first."""
        ...

    def submit(self, engine: int, requests: list[Request], seed: int | None, begun: BegunOf = NONE_BEGUN) -> None:
        """Give an engine requests; see `actors.rollout.types.Engine`.

        `begun`: of those that go on from there.
        """

    def abort(self, engine: int, requests: list[int], *, keep: bool = False) -> None:
        """End requests of an engine; `wait` tells of each that they are aborted.

        What they have so far can be collected with `keep`, and must not be without: then also one that has ended by
        itself meanwhile, or before, is told of as aborted, and what it has is gone.
        """

    def abort_older(self, engine: int, version: int) -> None:
        """End the requests of an engine of which weights before this version have sampled any token, whenever they were
        submitted; `wait` tells of each that it is aborted, and what it has is gone."""

    def progress(self, requests: Mapping[int, list[int]], timeout_s: float) -> dict[int, BegunGroup]:
        """Id of a request -> what its samples have so far; they go on all the same.

        Args:
            requests: engine -> which of its requests.
            timeout_s: seconds until all engines have answered.

        Requests of which `wait` tells, or will tell, are left out. Raises GroupError when an engine is lost or late.
        """
        ...

    def wait(self, others: Sequence[ObjectRef], timeout_s: float) -> list[Event]:
        """What has happened since the last call; waits up to `timeout_s` seconds for something, or for any of `others`
        (references)."""
        ...

    def collect(self, engine: int, requests: list[int]) -> "list[ObjectRef[Had]]":
        """References to the responses to each of these requests, which have ended, or to what the samples of a held one
        have; to be asked for once."""
        ...

    def condemn(self, engine: int, error: GroupError) -> None:
        """An engine is held for lost, whatever it does; `wait` tells of it."""
        ...

    def lacking_weights(self) -> int:
        """How many engines are back but for weights, which they get when the loop waits or publishes."""
        ...

    def stats(self, within_s: float) -> Callable[[], list[EngineStats | None]]:
        """Ask every engine how it is. What is returned gives their answers: None for one that is lost, or has not
        answered within `within_s` seconds after the question, for which it waits. Another thread may ask."""
        ...
