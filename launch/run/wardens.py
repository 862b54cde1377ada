"""The wardens of a run, as the driver asks them: what they see of its processes on other nodes, and who is silent.

each look:  ask every warden, take in what has come --> signs of processes there
            one that answers nothing                --> its node is suspect, then lost (`launch.run.silence`)
"""

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pulse import ProcessId
from launch.run.silence import Knock, Silence
from launch.run.warden import DistantSigns, Sight, Warden

_WAIT_S = 0.25
"""For answers within a look: what comes later is taken in with the next one."""


@dataclass(slots=True)
class _Post:
    """A warden, and what is known of its node."""

    id: str
    """Of the node, as Ray has it."""
    handle: ActorHandle
    silence: Silence
    pids: str | None = None
    """Whose numbers its processes have; None until it has said."""
    asked: "tuple[ObjectRef[list[Sight] | ProcessId], list[DistantSigns]] | None" = None
    """And of which processes."""
    is_dead: bool = False
    """Whether another is to be started: on this node, or on one that has its address by now."""
    zombies: list[ProcessId] = field(default_factory=list)
    """That it is to end."""
    ending: "tuple[ObjectRef[None], list[ProcessId]] | None" = None


class Wardens:
    """One on each node of the run but the driver's. All but `close` is for the thread that looks.

    Example:
        wardens = Wardens(4.0)
        wardens.look(now, {"10.0.0.3"}, [])
        signs = wardens.signs(process, now, family=True)
        wardens.look(now + 1, {"10.0.0.3"}, [signs])
        wardens.fallen({"10.0.0.3": now}, now + 1)  # addresses of nodes that are lost since
    """

    def __init__(self, heartbeat_s: float, lost: set[str] | None = None) -> None:
        """`heartbeat_s`: longest silence of a node; `lost`: takes the ids of those that are lost at the moment."""
        self._heartbeat_s, self._lost = heartbeat_s, set[str]() if lost is None else lost
        self._posts: dict[str, _Post] = {}
        """By the address of the node."""
        self._back: list[str] = []
        self._own: str | None = None
        self._posting: threading.Thread | None = None
        self._found: dict[str, _Post] = {}
        """Wardens that were started since the last look."""
        self._lock = threading.Lock()
        self._closed = False

    def look(self, now: float, addresses: Iterable[str], signs: Sequence[DistantSigns]) -> None:
        """Let all look once at these processes.

        Args:
            now: seconds of the caller's clock.
            addresses: of the nodes that the run has processes on; an empty one is the driver's.
            signs: of processes on them.
        """
        if self._closed:
            return
        self._take_in_posts(set(filter(None, addresses)))
        for address, post in self._posts.items():
            self._hear(address, post, now)
            if post.asked is None and not post.is_dead:
                self._ask(post, now, signs)
        asked = [post.asked[0] for post in self._posts.values() if post.asked and not post.silence.is_lost]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
        for address, post in list(self._posts.items()):
            self._hear(address, post, now)
            if post.is_dead:
                del self._posts[address]

    def signs(self, process: ProcessId, now: float, *, family: bool) -> DistantSigns | None:
        """Of a process that has said who it is; None where no warden can look at it (yet)."""
        for address, post in self._posts.items():
            if post.pids == process.pids:
                return DistantSigns(process, now, post.zombies.append, node=address, family=family)
        return None

    def fallen(self, heard: Mapping[str, float], now: float) -> dict[str, float]:
        """Nodes that are lost, and were not when this was asked last: address -> seconds of silence.

        Args:
            heard: address -> when a process there has answered last.
            now: seconds, by the same clock.
        """
        fallen = {
            address: post.silence
            for address, post in self._posts.items()
            if post.pids and not post.silence.is_lost and post.silence.look(now, heard.get(address, 0.0)) == "lost"
        }
        self._lost.update(self._posts[address].id for address in fallen)
        return {address: silence.silent_s for address, silence in fallen.items()}

    def back(self) -> list[str]:
        """Addresses of nodes that were lost and answer again, since this was asked last."""
        back, self._back = self._back, []
        return back

    def begin_anew(self, now: float) -> None:
        """Nobody has looked for long."""
        for post in self._posts.values():
            post.silence.begin_anew(now)

    def close(self) -> None:
        """End them."""
        with self._lock:
            self._closed = True
            posts = [*self._posts.values(), *self._found.values()]
        for post in posts:
            with contextlib.suppress(RayError):
                ray.kill(post.handle)

    def _ask(self, post: _Post, now: float, signs: Sequence[DistantSigns]) -> None:
        if post.pids is None:
            post.asked = post.handle.node.remote(), []
            return
        own = [each for each in signs if each.process.pids == post.pids]
        if post.zombies and post.ending is None:
            post.ending = post.handle.kill.remote(list(post.zombies)), list(post.zombies)
        post.asked = post.handle.look.remote([each.order for each in own]), own
        post.silence.asked(now)

    def _hear(self, address: str, post: _Post, now: float) -> None:
        """Take in what a warden has answered, if it has."""
        if post.ending and _is_done(post.ending[0]):
            (ref, ended), post.ending = post.ending, None
            with contextlib.suppress(RayError):  # else it is told once more
                ray.get(ref)
                post.zombies[:] = [each for each in post.zombies if each not in ended]
        if post.asked is None or not _is_done(post.asked[0]):
            return
        (ref, own), post.asked = post.asked, None
        try:
            told = ray.get(ref)
        except RayActorError as error:
            post.is_dead = not isinstance(error, ActorUnavailableError)
            return
        except RayError:
            return
        if isinstance(told, ProcessId):
            post.pids = told.pids
            return
        # One that was posted since knows nothing of the silence of the one before.
        if post.silence.answered() or post.id in self._lost:
            self._back.append(address)
            self._lost.discard(post.id)
        for each, sight in zip(own, told, strict=True):
            each.take_in(sight, now)

    def _take_in_posts(self, wanted: set[str]) -> None:
        with self._lock:
            self._posts |= self._found
            self._found.clear()
        missing = wanted - self._posts.keys() - {self._own}
        if missing and not (self._posting and self._posting.is_alive()):
            # Beside: what only Ray's head knows may take it a minute to say.
            self._posting = threading.Thread(target=self._post, args=(missing,), name="wardens", daemon=True)
            self._posting.start()

    def _post(self, addresses: set[str]) -> None:
        """Start wardens on these nodes."""
        self._own = self._own or ray.util.get_node_ip_address()
        nodes = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
        for address in addresses & nodes.keys() - {self._own}:
            node = nodes[address]
            knock = partial(Knock, address, node["NodeManagerPort"])
            with self._lock:
                if self._closed:
                    return
                self._found[address] = _Post(
                    node["NodeID"], _started(node["NodeID"]), Silence(self._heartbeat_s, knock)
                )


def end_actors(handles: Sequence[ActorHandle]) -> None:
    """Let Ray hold actors for dead whose node does not answer, so that nobody waits for them; returns at once."""

    def end() -> None:
        for handle in handles:
            with contextlib.suppress(RayError):
                ray.kill(handle)

    threading.Thread(target=end, name="end of actors", daemon=True).start()


def _started(node: str) -> ActorHandle:
    make: Any = ray.remote
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return make(num_cpus=0)(Warden).options(scheduling_strategy=there).remote()


def _is_done(ref: ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])
