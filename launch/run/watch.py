"""Notices that a process of the run is dead or frozen, and kills what is frozen: everybody else meets dead ones only.

A thread looks at every process once a second. Signs, the cheapest first:

- `exit`: it is gone, or Ray says so; an engine's, too, when a process of vLLM's that it has started is gone;
- `stopped`: it, or what it has started, is halted and has not moved between two looks. A debugger halts what it is
  attached to: whoever wants to use one on a process of a run that goes on must expect its end;
- `silent`: it has not answered a pulse for `heartbeat_s`, and all that time has done nothing (`launch.run.signs`).

What is alive and well may leave a pulse unanswered for as long as it holds Python's interpreter lock: it imports, or is
in a call of a library that keeps the lock. Then it computes, waits for a core, or reads from a disk, which can all be
seen. A rank that waits for another in a collective has let go of the lock, and answers. One that holds the lock and
sleeps, in a call that neither computes nor reads files, is frozen for all that others can tell.

Processes of other nodes are not in this machine's /proc: a warden looks at them there (`launch.run.wardens`). That they
are silent does not condemn them, as it may be the network, or want of a core: their node is lost where nobody on it
answers, and then all of them are.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.group import ActorGroup
from launch.run.node_faults import NodeFaults
from launch.run.signs import EXIT, SILENT, STOPPED, Signs
from launch.run.warden import LATE_S, LOOK_S, DistantSigns
from launch.run.wardens import Wardens, end_actors
from launch.run.watched import DIED, FROZE, NODE, PULSE_S, REWARD, Loss, Rank, how_far
from launch.tracking.events import Events, Fault

if TYPE_CHECKING:
    from launch.run.roster import Roster

HEARTBEAT_S = 4.0
"""Longest silence of a process that does nothing, if nobody says otherwise."""
_CALL = "call"
"""What has told of a reward process's end before a look did."""
_LOOK_S = LOOK_S
_END_S = 10.0


class ProcessWatch:
    """Looks at all processes of a run, from `start` to `stop`.

    Example:
        watch = ProcessWatch(roster, events, on_lost=print, warn=display.warning)
        watch.start()
        ...
        watch.stop()  # before processes are ended for good
    """

    def __init__(
        self,
        roster: "Roster",
        events: Events,
        *,
        on_lost: Callable[[Loss], None],
        warn: Callable[[str], None],
        heartbeat_s: float = HEARTBEAT_S,
        excuse: Callable[[], bool] = lambda: False,
        on_news: Callable[[], None] = lambda: None,
        on_work: Callable[[str], None] = lambda _: None,
        wardens: Wardens | None = None,
        pool_nodes: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            roster: whose processes; those are looked at that it has at the moment.
            events: is told of each loss, once.
            on_lost: hears of it next, on this thread, when the process is dead. What it raises is a warning.
            warn: shows a line.
            heartbeat_s: longest silence of a process that does nothing.
            excuse: whether something else has died that takes all processes along: theirs is no fault then.
            on_news: called where `pids` has changed.
            on_work: hears how far the process has come that has most before it, of those that count; "" where none
                does.
            wardens: look at what is on other nodes; they are closed with this.
            pool_nodes: addresses of the nodes that reward processes were given.
            clock: seconds.
        """
        self._excuse, self._on_news, self._on_work = excuse, on_news, on_work
        self._pids: dict[str, int] = {}
        self._roster, self._events, self._on_lost, self._warn = roster, events, on_lost, warn
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._wardens, self._pool_nodes = wardens or Wardens(heartbeat_s), pool_nodes
        self._nodes = NodeFaults(events)
        self._ranks: dict[tuple[str, int], Rank] = {}
        self._faults: dict[tuple[str, int], int] = {}
        """Of reward processes: number of the fault that is not over."""
        self._looked: float | None = None
        self._heard_pulse = False
        self._told: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what ends from now on is meant to. Waits for the look that is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)
        self._wardens.close()

    def look_last(self) -> None:
        """Look no more, but for once: what has died or stopped beside the fault by which everything ends is told, too.
        Nobody mends it. Takes a second where a process is halted, which may be for a moment."""
        self.stop()
        self._on_lost = lambda _: None
        self.look()
        if any(rank.signs and rank.signs.is_halted for rank in self._ranks.values() if not rank.is_lost):
            time.sleep(_LOOK_S)
            self.look()

    def pids(self) -> dict[str, int]:
        """Processes of the run on this machine that have said who they are: `policy[0]` -> pid. Any thread may ask."""
        return self._pids

    def look(self) -> None:
        """Look once at every process; a second should lie between two looks."""
        now = self._clock()
        if self._looked is not None and now - self._looked > _LOOK_S + LATE_S:
            self._begin_anew(now)
        self._looked = now
        self._ask_wardens(now)
        lost: list[tuple[Rank, Loss]] = []
        for rank, loss in [*self._look_at_groups(now), *self._look_at_pool(now), *self._look_at_nodes(now)]:
            # All are ended before anybody hears of one: who mends a group shall not meet a rank that is frozen, too.
            rank.is_lost = True
            rank.end()
            lost.append((rank, loss))
        for rank, loss in lost if lost and not self._excuse() else ():
            self._tell(rank, loss)
        pids = {
            f"{rank.group}[{rank.rank}]": rank.process.pid
            for rank in self._ranks.values()
            if isinstance(rank.signs, Signs) and rank.process and not rank.is_lost
        }
        if pids != self._pids:
            self._pids = pids
            self._on_news()
        if self._heard_pulse:
            self._heard_pulse = False
            self._on_work(how_far(self._ranks.values()))

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            try:
                self.look()
            except Exception as error:  # Whatever it is: nobody else notices what freezes.
                self._say(f"looking at the run's processes failed: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        """A warning, once."""
        if text not in self._told:
            self._told.add(text)
            with contextlib.suppress(Exception):  # a terminal that is gone must not end the watch
                self._warn(text)

    def _begin_anew(self, now: float) -> None:
        for rank in self._ranks.values():
            if rank.asked:
                rank.asked_at = now
            if rank.signs:
                rank.signs.begin_anew()
        self._wardens.begin_anew(now)

    def _ask_wardens(self, now: float) -> None:
        nodes = {node for group in list(self._roster.values()) for node in group.nodes} | set(self._pool_nodes())
        signs = [rank.signs for rank in self._ranks.values() if isinstance(rank.signs, DistantSigns)]
        self._wardens.look(now, nodes, signs)
        for rank in self._ranks.values():
            rank.see(self._wardens, now)

    def _look_at_nodes(self, now: float) -> Iterator[tuple[Rank, Loss]]:
        """All processes of a node are lost with it."""
        heard: dict[str, float] = {}
        for rank in self._ranks.values():
            if rank.process:
                heard[rank.node] = max(heard.get(rank.node, 0.0), rank.answered_at)
        for address in self._wardens.back():
            self._nodes.over(address, "it is back")
        # Those of the looks before, which have told of their processes by now.
        self._nodes.leave({rank.node for rank in self._ranks.values() if rank.is_lost})
        for address, silent_s in self._wardens.fallen(heard, now).items():
            self._nodes.fell(address, silent_s)
            there = [rank for rank in self._ranks.values() if rank.node == address and not rank.is_lost]
            # Whoever waits for their answers waits no more, whatever Ray thinks of the node.
            end_actors([handle for rank in there if (handle := self._handle(rank))])
            for rank in there:
                if rank.group != REWARD or (self._roster.pool and self._roster.pool.lost(rank.rank, rank.generation)):
                    yield rank, rank.loss(DIED, NODE, now)

    def _handle(self, rank: Rank) -> ActorHandle | None:
        if rank.group == REWARD:
            return self._roster.pool.actor(rank.rank, rank.generation) if self._roster.pool else None
        group = self._roster[rank.group]
        return group.handles[rank.rank] if group.generations[rank.rank] == rank.generation else None

    def _tell(self, rank: Rank, loss: Loss) -> None:
        number = self._events.noticed(_fault(rank, loss))
        if loss.group == REWARD:
            there = self._ranks.get((loss.group, loss.rank))
            if there and there.generation != loss.generation and there.process:  # the same look has found the next one
                self._events.recovered(number, "restarted")
            else:
                self._faults[loss.group, loss.rank] = number
        try:
            self._on_lost(loss)
        except Exception as error:  # Whatever it is: the others are to be heard of all the same.
            self._say(f"{loss.who} is lost, and telling of it failed: {type(error).__name__}: {error}")

    def _rank(self, group: str, rank: int, generation: int, now: float, node: str = "") -> Rank:
        """What is known of a process; nothing, where another had its place until now."""
        known = self._ranks.get((group, rank))
        if known is None or known.generation != generation:
            if known:
                self._tell_of_halted(known, now)
                self._forget(known)
            known = self._ranks[group, rank] = Rank(group, rank, generation, now, node)
        return known

    def _tell_of_halted(self, rank: Rank, now: float) -> None:
        """A process whose place has been taken, as its group was built anew for another one's sake, may have been
        stopped, too: who mends does not see it."""
        if rank.is_lost or rank.signs is None or self._excuse():
            return
        was_halted = rank.signs.is_halted
        gone = rank.signs.look(now) == EXIT
        loss = rank.loss(FROZE, STOPPED, now)
        if (was_halted if gone else rank.signs.is_halted) and not self._events.is_told(loss.who, loss.generation):
            self._events.recovered(self._events.noticed(_fault(rank, loss)), "rebuilt")

    def _forget(self, rank: Rank) -> None:
        """Another has taken its place, or none shall: if it was halted, Ray would need five seconds to end it."""
        if not rank.is_lost:
            rank.end()
        del self._ranks[rank.group, rank.rank]

    def _look_at_groups(self, now: float) -> Iterator[tuple[Rank, Loss]]:
        found: list[tuple[ActorGroup[Any], ActorHandle, Rank]] = []
        for name in list(self._roster):
            group = self._roster[name]
            handles = list(group.handles)
            for number in range(len(handles), len(group)):  # none yet, or none any more
                if known := self._ranks.get((name, number)):
                    self._forget(known)
            for number, handle in enumerate(handles):
                rank = self._rank(name, number, group.generations[number], now, group.nodes[number])
                if not rank.is_lost:
                    found.append((group, handle, rank))
        asked = [rank.asked for _, _, rank in found if rank.asked]
        answered = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for group, handle, rank in found:
            self._heard_pulse |= rank.asked in answered
            sign = _heard(rank, now) if rank.asked in answered else None
            rank.see(self._wardens, now)
            if found_by := sign or self._sign(rank, now):
                # What is ended on purpose is counted, or forgotten, before.
                if group.handles and group.generations[rank.rank] == rank.generation:
                    yield rank, rank.loss(DIED if found_by == EXIT else FROZE, found_by, now)
            elif rank.asked is None and now - rank.asked_at >= PULSE_S:
                _ask(group, handle, rank, now)

    def _sign(self, rank: Rank, now: float) -> str | None:
        if rank.signs is None:
            return None
        if found := rank.signs.look(now):
            return found
        # One that has just been asked may be about to answer.
        if rank.asked and now - rank.asked_at >= _LOOK_S / 2:
            quiet_s = min(rank.signs.still_s(now), now - rank.asked_at)
            return SILENT if quiet_s >= self._heartbeat_s else None
        return None

    def _look_at_pool(self, now: float) -> Iterator[tuple[Rank, Loss]]:
        """Reward processes answer nothing beside their work: they may take as long as their deadline says."""
        pool = self._roster.pool
        if pool is None:
            return
        # In this order: where a process is no more, what has become of it is there to be asked for.
        processes, deaths = pool.processes(), pool.deaths()
        for place, generation in deaths:
            known = self._ranks.get((REWARD, place))
            if known and known.generation == generation and not known.is_lost:
                yield known, known.loss(DIED, _CALL, now)
        for place, (generation, process) in processes.items():
            rank = self._rank(REWARD, place, generation, now)
            if process and rank.process is None:
                rank.hear(process, now)
                rank.see(self._wardens, now)
                if (fault := self._faults.pop((REWARD, place), None)) is not None:
                    self._events.recovered(fault, "restarted")
            found_by = rank.signs.look(now) if rank.signs and not rank.is_lost else None
            if found_by and pool.lost(place, generation):
                yield rank, rank.loss(DIED if found_by == EXIT else FROZE, found_by, now)


def _fault(rank: Rank, loss: Loss) -> Fault:
    return Fault(
        who=loss.who, what=loss.what, noticed_by=loss.noticed_by, noticed_s=loss.noticed_s,
        generation=loss.generation, pid=loss.pid, node=rank.node,
    )  # fmt: skip


def _ask(group: ActorGroup[Any], handle: ActorHandle, rank: Rank, now: float) -> None:
    ref = group.ask_pulse(handle)
    # A handle may be of the process before, where it is being replaced just now.
    if group.origin(ref) == (rank.rank, rank.generation):
        rank.asked, rank.asked_at = ref, now


def _heard(rank: Rank, now: float) -> str | None:
    """Take in the answer of a rank: EXIT where it is a dead one's."""
    assert rank.asked is not None
    process = None
    try:
        rank.pulse = ray.get(rank.asked, timeout=_LOOK_S)
        process = rank.pulse.process
    except RayTaskError:
        pass  # an engine tells so of what has ended its work: its process answers
    except ActorUnavailableError:
        rank.asked = None  # a connection that is broken says nothing of the process
        return None
    except RayActorError as error:
        rank.asked = None
        # One that raises when it is made has failed: whoever has called it tells so, with the cause.
        rank.is_lost = error.actor_init_failed
        return None if rank.is_lost else EXIT
    except RayError:
        rank.asked = None
        return None
    rank.hear(process, now)
    return None
