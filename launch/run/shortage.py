"""Why a reservation has no room on the nodes there are, in one line. Imports no Ray."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from launch.sizes.placement import Reservation

# Sums of fractions: 0.1 + 0.2 is more than 0.3.
_ROUNDING = 1e-6
_ANY_OF = re.compile(r"in\((.*)\)")


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the cluster."""

    node_id: str
    labels: Mapping[str, str]
    total: Mapping[str, float]
    """Ray resources."""
    free: Mapping[str, float]
    """Those that nobody has reserved."""


def shortage(wanted: Reservation, nodes: Sequence[Node], avoided: Set[str] = frozenset()) -> str:
    """What a reservation waits for: a label that no node has, resources that the cluster does not have, or that others
    use now. `avoided`: ids of nodes that it may not be on."""
    return (
        lacking(wanted, nodes, avoided)
        or _missing(wanted, [node.free for node in _allowed(wanted, nodes, avoided)], "free now are")
        or f"{wanted.name} waits for Ray to reserve {_bundles(wanted)}"
    )


def have_room(wanted: Reservation, nodes: Sequence[Node], avoided: Set[str] = frozenset()) -> bool:
    """Whether a reservation would find room now."""
    return _missing(wanted, [node.free for node in _allowed(wanted, nodes, avoided)], "") is None


def lacking(wanted: Reservation, nodes: Sequence[Node], avoided: Set[str] = frozenset()) -> str | None:
    """What the nodes lack even if nobody else uses them; None when they would do."""
    there = "the cluster has"
    if avoided:
        whose = "other groups" if wanted.name == "rollout" else "rollout engines"
        there = f"nodes without {whose} (cluster.placement separate) have"
    allowed = [node for node in nodes if node.node_id not in avoided]
    if not allowed:
        return f"{wanted.name} needs a node, {there} none"
    for name, value in wanted.labels.items():
        fitting = [node for node in allowed if matches(value, node.labels.get(name))]
        if not fitting:
            values = sorted({node.labels[name] for node in allowed if name in node.labels})
            found = f"its nodes have {', '.join(values)}" if values else "no node has that label"
            return f"{wanted.name} needs nodes with label {name}={value}, but {found}"
        allowed = fitting
    if wanted.labels:
        there = f"nodes with {', '.join(f'{name}={value}' for name, value in wanted.labels.items())} have"
    return _missing(wanted, [node.total for node in allowed], there)


def _allowed(wanted: Reservation, nodes: Sequence[Node], avoided: Set[str]) -> list[Node]:
    return [
        node
        for node in nodes
        if node.node_id not in avoided
        and all(matches(value, node.labels.get(name)) for name, value in wanted.labels.items())
    ]


def matches(expression: str, value: str | None) -> bool:
    """Whether a node's label (None: it has none) satisfies a Ray label expression: v, !v, in(a, b), !in(a, b)."""
    negated, expression = expression.startswith("!"), expression.removeprefix("!")
    listed = _ANY_OF.fullmatch(expression)
    accepted = [item.strip() for item in listed[1].split(",")] if listed else [expression]
    return (value in accepted) != negated


def _missing(wanted: Reservation, nodes: Sequence[Mapping[str, float]], there: str) -> str | None:
    """What the reservation lacks on nodes with these resources; None when it fits."""
    for name in sorted({name for bundle in wanted.bundles for name in bundle}):
        need = sum(bundle.get(name, 0.0) for bundle in wanted.bundles)
        found = sum(node.get(name, 0.0) for node in nodes)
        if need > found + _ROUNDING:
            return f"{wanted.name} needs {need:g} {name}, {there} {found:g}"
    placed = _placed(wanted, nodes)
    if placed == len(wanted.bundles):
        return None
    if wanted.apart:
        return f"{wanted.name} needs {_bundles(wanted)}, {there} {placed} such node{'s' * (placed != 1)}"
    return f"{wanted.name} needs {_bundles(wanted)}, each on one node, {there} room for {placed} of them"


def _placed(wanted: Reservation, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many bundles find room, the largest first, each on the first node that has some."""
    left = [dict(node) for node in nodes]
    placed = 0
    for bundle in sorted(wanted.bundles, key=lambda bundle: sorted(bundle.values()), reverse=True):
        for node in left:
            if all(node.get(name, 0.0) + _ROUNDING >= amount for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] -= amount
                if wanted.apart:
                    left.remove(node)  # the next bundle needs another node
                placed += 1
                break
    return placed


def _bundles(wanted: Reservation) -> str:
    largest = max(wanted.bundles, key=lambda bundle: sorted(bundle.values()))
    amounts = " + ".join(f"{amount:g} {name}" for name, amount in largest.items())
    what = "nodes" if wanted.apart else "bundles"
    return f"{len(wanted.bundles)} {what[: -1 if len(wanted.bundles) == 1 else None]} with {amounts}"
