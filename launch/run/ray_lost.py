"""Whether it was Ray itself that died, and not the process of a group that is told of first."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from actors.group import GroupError, first_line

_PATIENCE_S = 5.0
_KINDS = {"raylet": "raylet", "gcs_server": "gcs"}
"""Kind of process in Ray's own table -> what it is called here."""


class RayLost(RuntimeError):
    """A process of Ray's, or a node that the run lives on, has died, and all of the run's processes there with it."""

    def __init__(self, message: str, who: Collection[str]) -> None:
        """`who`: raylet, gcs or the address of a node, of each that has died."""
        super().__init__(message)
        self.who = who


@contextmanager
def told_of_ray(nodes: Collection[str], survived: Collection[str] = ()) -> Iterator[None]:
    """Let a failure of a group within the block that has its cause in Ray's death say so.

    Args:
        nodes: ids of the nodes that the run lives on.
        survived: of those that were lost, and that groups therefore have left, or are mended without: where a group
            fails, it is not for them.

    Raises:
        RayLost: instead of a GroupError, or of an error of Ray's.
    """
    try:
        yield
    except (GroupError, RayError, ConnectionError) as error:
        said, who = _dead_processes()
        if not said:
            # Ray itself knows groups no more than nodes: what it misses may have been there.
            said, who = _dead_nodes(set(nodes).difference(survived if isinstance(error, GroupError) else ()))
        if said:
            text = f"{said}, and the run's processes with it; first told of: {first_line(str(error))}"
            raise RayLost(text, who) from error
        raise


def own_processes() -> list[tuple[str, Popen]]:
    """Raylet and GCS of a Ray that this process has started, with what they are called; none where it was joined."""
    node: Any = ray_worker._global_node  # declared as None, which it is before `ray.init`
    if node is None or not node.head:
        return []
    return [(name, info.process) for kind, name in _KINDS.items() for info in list(node.all_processes.get(kind, ()))]


def ray_is_dead() -> bool:
    """Whether Ray's own processes on this machine have died, as far as this process has started them."""
    return any(process.poll() is not None for _, process in own_processes())


def _dead_processes() -> tuple[str, list[str]]:
    """Those of a Ray that this process has started, in words and by name; empty when all live, or it was joined."""
    node: Any = ray_worker._global_node
    found = node.dead_processes() if node is not None and node.head else []
    dead = [f"{kind} (process {process.pid}, {end_in_words(process.poll())})" for kind, process in found]
    said = f"of Ray's own processes on this machine died {', '.join(dead)}" if dead else ""
    return said, [_KINDS.get(str(kind), str(kind)) for kind, _ in found]


def end_in_words(code: int) -> str:
    """How a process has ended, by its exit code, which is below 0 for a signal."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _dead_nodes(nodes: Collection[str]) -> tuple[str, list[str]]:
    """Those of the run's nodes that Ray holds for dead, in words and by address; empty when all live, or Ray does not
    say in time."""
    found: list[dict] = []

    def ask() -> None:
        found.extend(ray.nodes())

    # Where Ray's head has died, the question is not answered, nor does it end.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    lost = [node for node in found if not node["Alive"] and node["NodeID"] in nodes]
    dead = [f"{node['NodeManagerAddress']} ({node.get('DeathReasonMessage') or 'no reason given'})" for node in lost]
    return f"node {', '.join(dead)} died" if dead else "", [node["NodeManagerAddress"] for node in lost]
