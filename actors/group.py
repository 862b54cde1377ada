"""A group of Ray actors that run one plain worker class: spawn, rendezvous, call, shut down.

Worker classes know nothing of Ray; `ray.remote` is applied here. Calls pass the method itself, so that types are
checked and names can be followed: `policy.call(PolicyWorker.update, batch)`.
"""

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.failure import first_sentence
from actors.group_errors import DataLost, GroupError, RankLate, RankLost
from actors.pulse import Pulse, is_beside

W = TypeVar("W")
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one actor lives and what it may use."""

    placement: PlacementGroup
    bundle: int
    cpus: float
    gpus: float
    threads: int
    resources: dict[str, float] = field(default_factory=dict)
    """Custom Ray resources."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables, beside those of all processes."""
    node: str = ""
    """Address of its node; empty when there is only one."""
    node_id: str = ""
    """Ray's id of its node, when it was reserved."""
    alone: bool = False
    """Whether all of the run is on this node."""
    niceness: int = 0
    """By which it lets other processes go first."""

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """How Ray schedules an actor here."""
        return PlacementGroupSchedulingStrategy(self.placement, self.bundle)


NICENESS = "TANDEM_NICENESS"
"""Environment variable of actors that let others go first: by how much."""
ONE_NODE = "TANDEM_ONE_NODE"
"""Environment variable of actors whose run has no process on another node."""
_CPU_ENVIRONMENT = {
    # Groups take turns on the same cores: a thread that spins while it waits would take them from the others. Some
    # microseconds, though, bridge the gap to the next operation: without them small updates take 40 % longer.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
    # Keep freed memory: every step needs as much again, and fetching its pages anew took up to half of a small step and
    # of a weight sync. Threads share one arena, as those of their own give large blocks back.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}


CONTROL = "control"
"""Concurrency group of what every actor answers while it works.

Where there is one, Ray 2.60 runs the other methods on one thread of their own, in order, and the main thread only takes
in calls. Keeping them on the main thread (max_concurrency=0 does) is no use: calls of all groups pass through it, and
none arrives while it computes. No method may therefore need the main thread, as Python's signals do: reward processes,
whose functions set timers by signals, have no such group. What torch keeps per thread is the same on both: the number
of OpenMP threads is in the environment, and the CUDA device is the only one that the process sees.
"""
_CONTROL_CALLS = 4
"""So many at one time: a pulse is answered beside two methods that are `beside` the others, and another pulse."""
_PULSE = "pulse"
_GONE = ObjectLostError, RayActorError
"""Why Ray does not give what a reference stands for: it was lost with a node, or with the process it was of."""


class ActorGroup(Generic[W]):
    """`len(slots)` actors of one worker class, addressed by rank.

    A group outlives its processes: `replace` ends one and starts another in its stead. Who holds the group and asks it
    at every use always reaches those of now; who keeps `handles` does not.
    """

    def __init__(
        self,
        name: str,
        worker: type[W],
        slots: Sequence[Slot],
        *,
        timeout_s: float,
        log_directory: str,
        concurrency: dict[str, int] | None = None,
    ) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self.slots = list(slots)
        self.handles: list[ActorHandle] = []
        self.generations = [0] * len(self.slots)
        """Of each rank: how often its process was replaced."""
        make: Any = ray.remote
        self._remote = make(concurrency_groups={CONTROL: _CONTROL_CALLS} | (concurrency or {}))(worker)
        self._log_directory = log_directory
        self._arguments: tuple[tuple[object, ...], dict[str, object]] = (), {}
        self._fresh: set[int] = set()
        self._born: dict[object, tuple[int, int]] = {}
        """Id of every actor that was started -> its rank and generation."""

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def nodes(self) -> list[str]:
        """Address of each rank's node; empty when there is only one."""
        return [slot.node for slot in self.slots]

    @property
    def version(self) -> int:
        """How many processes were replaced so far: what depends on all of them is out of date when it moves."""
        return sum(self.generations)

    def spawn(self, *args: object, **kwargs: object) -> None:
        """Start all actors as `worker(rank, ranks, *args, **kwargs)`, without waiting for them."""
        self._arguments = args, kwargs
        self.handles = [self._start(rank) for rank in range(len(self))]

    def replace(self, rank: int, slot: Slot | None = None) -> None:
        """End a rank's process, if it lives, and start another one with the same arguments, without waiting for it.

        It starts in the same slot, or in another, which the rank then has. Calls to the one before fail. What ranks
        share, they must build anew: see `launch.run.groups.rebuild`.
        """
        # The slot first, and counted before it ends: who sees that on another thread sees that it was meant, and where
        # the next one is.
        if slot is not None:
            self.slots[rank] = slot
        self.generations[rank] += 1
        # Ended before the next one starts: its slot has room for one process.
        ray.kill(self.handles[rank])
        self.handles[rank] = self._start(rank)

    def add(self, slot: Slot) -> int:
        """Start one more process, with the arguments of the others, without waiting for it; returns its rank.

        It counts as one that was replaced: `version` moves.
        """
        rank = len(self)
        # The handle last: who looks at them on another thread finds all else.
        self.generations.append(1)
        self.slots.append(slot)
        self.handles.append(self._start(rank))
        return rank

    def retire(self, rank: int) -> None:
        """End a rank's process, if it lives, and start no other; `replace` may do so later."""
        self.generations[rank] += 1  # first, as in `replace`
        ray.kill(self.handles[rank])

    def is_fresh(self, rank: int) -> bool:
        """Whether a rank's process is as it was started: nothing was called but its pulse."""
        return rank in self._fresh

    def origin(self, ref: ObjectRef) -> tuple[int, int]:
        """Rank and generation of the process that a reference of `submit` is, or was, to be answered by."""
        return self._born[ref.task_id().actor_id()]

    def _start(self, rank: int) -> ActorHandle:
        options = _options(self.slots[rank], f"{self._log_directory}/{self.name}-{rank}.log")
        args, kwargs = self._arguments
        handle = self._remote.options(**options).remote(rank, len(self), *args, **kwargs)
        # Calls to a process that was replaced may end after its successor has started: whose they are must still be
        # known.
        self._born[handle._actor_id] = rank, self.generations[rank]
        self._fresh.add(rank)
        return handle

    @overload
    def submit(
        self, rank: int, method: Callable[..., object], *args: object, num_returns: int, **kwargs: Any
    ) -> Any: ...
    @overload
    def submit(
        self, rank: int, method: Callable[Concatenate[W, P], T], *args: object, **kwargs: Any
    ) -> "ObjectRef[T]": ...
    def submit(
        self, rank: int, method: Callable[..., object], *args: object, num_returns: int = 1, **kwargs: Any
    ) -> Any:
        """Call a method on one rank and return its object reference(s) at once; one that is `beside` the others does
        not wait for them."""
        self._fresh.discard(rank)
        bound = getattr(self.handles[rank], method.__name__)
        options: dict[str, Any] = {"num_returns": num_returns} if num_returns != 1 else {}
        if is_beside(method):
            options["concurrency_group"] = CONTROL
        return (bound.options(**options) if options else bound).remote(*args, **kwargs)

    @staticmethod
    def ask_pulse(handle: ActorHandle) -> "ObjectRef[Pulse]":
        """Ask one of `handles` what it does now; returns at once, and whose the answer is `origin` says."""
        return handle.pulse.options(concurrency_group=CONTROL).remote()

    def pulses(self, within_s: float) -> list[Pulse | GroupError]:
        """What each rank's process does now, whether it works or waits; it is asked beside its work.

        The error of a rank that has not answered within `within_s` seconds, or is dead. A process that is still being
        started does not answer.
        """
        deadline = Countdown(within_s)
        refs = [self.ask_pulse(handle) for handle in self.handles]
        done = ray.wait(refs, num_returns=len(refs), timeout=within_s)[0] if refs else []
        return [self._pulse(rank, ref, deadline, answered=ref in done) for rank, ref in enumerate(refs)]

    def _pulse(
        self, rank: int, ref: "ObjectRef[Pulse]", deadline: "Countdown", *, answered: bool
    ) -> Pulse | GroupError:
        if not answered:
            return no_answer(self.name, [rank], _PULSE, deadline.seconds, self.nodes)
        try:
            return _answer(self.name, rank, ref, _PULSE, deadline, self.nodes)
        except GroupError as error:
            return error

    def call(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call a method on every rank with the same arguments and wait for all; raises GroupError."""
        refs = [self.submit(rank, method, *args, **kwargs) for rank in range(len(self))]
        return self.gather(refs, method.__name__)

    def scatter(self, method: Callable[..., T], arguments: Sequence[tuple[object, ...]]) -> list[T]:
        """Call a method with one argument tuple per rank and wait for all; raises GroupError."""
        refs = [self.submit(rank, method, *arguments[rank]) for rank in range(len(self))]
        return self.gather(refs, method.__name__)

    def gather(
        self,
        refs: "Sequence[ObjectRef[T]]",
        what: str,
        timeout_s: float | None = None,
        ranks: Sequence[int] | None = None,
        told: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """Wait for references within the deadline; the first failure ends the wait, whichever rank it is on.

        `ranks` says whose they are (default: one of each rank, in order); `told` hears how many of them have answered.
        """
        owners = range(len(refs)) if ranks is None else ranks
        within_s = self.timeout_s if timeout_s is None else timeout_s
        return answers_of(self.name, owners, refs, what, within_s, self.nodes, told)

    def notice(self, refs: Sequence[ObjectRef], what: str) -> None:
        """Raise GroupError if a call, one of each rank, has failed already; does not wait for the others."""
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in done:
            self.answer(refs.index(ref), ref, what)

    def wait(self, refs: Sequence[ObjectRef]) -> None:
        """Wait until all calls have answered or failed, within the deadline; raises nothing."""
        ray.wait(list(refs), num_returns=len(refs), timeout=self.timeout_s, fetch_local=False)

    def ended(self, refs: Sequence[ObjectRef]) -> set[ObjectRef]:
        """Those calls that have answered or failed; does not wait."""
        return set(ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)[0]) if refs else set()

    def answer(self, rank: int, ref: "ObjectRef[T]", what: str) -> T:
        """What a rank has answered to a call of which `ray.wait` has told that it is done; raises GroupError."""
        return _answer(self.name, rank, ref, what, Countdown(self.timeout_s), self.nodes)

    def shutdown(self) -> None:
        """End every actor, by handle."""
        # Forgotten first, as in `replace`.
        handles, self.handles = self.handles, []
        for handle in handles:
            ray.kill(handle)
        self._fresh.clear()


class Countdown:
    """Seconds that all waits of one call share."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; 0, with which Ray still gives what is there, and not less, which is an error for it."""
        return max(0.0, self._at - time.monotonic())


def answers_of(
    name: str,
    owners: Sequence[int],
    refs: "Sequence[ObjectRef[T]]",
    what: str,
    timeout_s: float,
    nodes: Sequence[str] = (),
    told: Callable[[int, int], None] | None = None,
) -> list[T]:
    """What a group's ranks answer to a call, in order; `owners` says whose the references are.

    The first failure ends the wait, whichever rank it is on. Raises GroupError.
    """
    deadline = Countdown(timeout_s)
    pending, answers = list(refs), {}
    if told:
        told(0, len(refs))
    while pending:
        ready, pending = ray.wait(pending, timeout=deadline.left_s)
        if not ready:
            late = [rank for rank, ref in zip(owners, refs, strict=True) if ref in pending]
            raise no_answer(name, late, what, timeout_s, nodes)
        # Ray gives as many as it was asked for, here one: the others that are ready are taken along.
        if pending:
            more, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
            ready += more
        for ref in ready:
            answers[ref] = _answer(name, owners[refs.index(ref)], ref, what, deadline, nodes)
        if told:
            told(len(answers), len(refs))
    return [answers[ref] for ref in refs]


def no_answer(name: str, late: list[int], what: str, timeout_s: float, nodes: Sequence[str] = ()) -> RankLate:
    """The error of ranks that have missed a deadline."""
    where = ", ".join(dict.fromkeys(filter(None, (nodes[rank] for rank in late)))) if nodes else ""
    text = f"{name}.{what}: no answer from rank(s) {late} within {timeout_s:g} s" + f" (on {where})" * bool(where)
    return RankLate(text, name, late)


def _answer(name: str, rank: int, ref: "ObjectRef[T]", what: str, deadline: Countdown, nodes: Sequence[str]) -> T:
    where = f" (on {nodes[rank]})" if nodes and nodes[rank] else ""
    try:
        # What is done has come to this node, but may have gone to its disk since.
        return ray.get(ref, timeout=deadline.left_s)
    except RayTaskError as error:
        if isinstance(error.cause, GroupError):
            raise copy(error.cause) from error  # of a group that this one has called: the fault is there
        # Not the fault of who was asked: an argument of the call is gone.
        kind = DataLost if isinstance(error.cause, _GONE) else GroupError
        raise kind(f"{name}[{rank}].{what}: {_cause(error)}{where}") from error
    except RayActorError as error:
        cause = first_line(str(error))
        if error.actor_init_failed:  # nothing has happened to it: another process would do the same
            raise GroupError(f"{name}[{rank}].{what}: the process did not start ({cause}){where}") from error
        text = f"{name}[{rank}].{what}: the process died ({cause}){where}"
        own = error.actor_id is None or error.actor_id == ref.task_id().actor_id().hex()
        raise (RankLost(text, name, rank) if own else DataLost(text)) from error
    except GetTimeoutError as error:
        raise no_answer(name, [rank], what, deadline.seconds, nodes) from error
    except RayError as error:  # the answer was lost with its node, for example
        cause = f"{type(error).__name__}: {first_line(str(error))}"
        kind = DataLost if isinstance(error, _GONE) else GroupError
        raise kind(f"{name}[{rank}].{what}: {cause}{where}") from error


def _options(slot: Slot, log: str) -> dict[str, object]:
    return {
        "num_cpus": slot.cpus,
        "num_gpus": slot.gpus,
        "resources": slot.resources,
        "scheduling_strategy": slot.strategy,
        "runtime_env": {"env_vars": _environment(slot, log)},
    }


def _environment(slot: Slot, log: str) -> dict[str, str]:
    # Ray hides GPUs only from actors that ask for some; a rank without any must not find one either.
    hidden = {} if slot.gpus else {"CUDA_VISIBLE_DEVICES": ""} | _CPU_ENVIRONMENT
    alone = {ONE_NODE: "1"} if slot.alone else {}
    nice = {NICENESS: str(slot.niceness)} if slot.niceness else {}
    # A user's variables win against these defaults, but not against the threads that were counted.
    return hidden | slot.env | nice | alone | {"OMP_NUM_THREADS": str(slot.threads), "TANDEM_LOG": log}


def _cause(error: RayTaskError) -> str:
    cause = error.cause
    text = first_line(str(cause)) if cause is not None else first_line(str(error))
    return f"{type(cause).__name__}: {text}"


def first_line(text: str) -> str:
    """What a message says first, without the traceback that Ray puts before it and without secrets."""
    lines = text.strip().splitlines()
    if lines and "ray::" in lines[0]:
        # What is raised stands behind the last frame and its code.
        last = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
        raised = (number for number, line in enumerate(lines) if number > last and line[:1].strip())
        text = "\n".join(lines[next(raised, -1) :])
    return first_sentence(text) or "no message"
