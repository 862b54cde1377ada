"""Whether it was Ray itself that died, and not the process of a group that is told of first."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from actors.group import GroupError, first_line

_PATIENCE_S = 5.0


class RayLost(RuntimeError):
    """A process of Ray's, or a node that the run lives on, has died, and all of the run's processes there with it."""


@contextmanager
def told_of_ray(nodes: Collection[str]) -> Iterator[None]:
    """Let a failure of a group within the block that has its cause in Ray's death say so.

    Args:
        nodes: ids of the nodes that the run lives on.

    Raises:
        RayLost: instead of a GroupError, or of an error of Ray's.
    """
    try:
        yield
    except (GroupError, RayError, ConnectionError) as error:
        if lost := _dead_processes() or _dead_nodes(nodes):
            raise RayLost(
                f"{lost}, and the run's processes with it; first told of: {first_line(str(error))}"
            ) from error
        raise


def _dead_processes() -> str:
    """Those of a Ray that this process has started, in words; empty when all live, or it was joined."""
    node: Any = ray_worker._global_node  # declared as None, which it is before `ray.init`
    if node is None or not node.head:
        return ""
    dead = [f"{kind} (process {process.pid}, {_end(process.poll())})" for kind, process in node.dead_processes()]
    return f"of Ray's own processes on this machine died {', '.join(dead)}" if dead else ""


def _end(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _dead_nodes(nodes: Collection[str]) -> str:
    """Those of the run's nodes that Ray holds for dead, in words; empty when all live, or Ray does not say in time."""
    found: list[dict] = []

    def ask() -> None:
        found.extend(ray.nodes())

    # Where Ray's head has died, the question is not answered, nor does it end.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    dead = [
        f"{node['NodeManagerAddress']} ({node.get('DeathReasonMessage') or 'no reason given'})"
        for node in found
        if not node["Alive"] and node["NodeID"] in nodes
    ]
    return f"node {', '.join(dead)} died" if dead else ""
