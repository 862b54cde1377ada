"""Whether each point of a sweep's space is a configuration, before any trial starts.

A setting that the values of a point leave without effect is refused in a run; in a sweep it takes its default there,
with a warning, as long as it has an effect at some other point.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from actors.config import UserError
from launch.config import RunConfig, UnusedError, load
from launch.kinds.table import job_kind
from launch.settings.file import parse
from launch.settings.metric_names import UNORDERED, require_metric
from launch.sweep.space import Point, Space

_MOST_CORNERS = 512
"""Combinations that are checked, at 2 ms each."""
_MOST_ROUNDS = 20
"""Settings without effect at one point: each is found only once those before it have their defaults."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A point whose configuration is valid."""

    point: Point
    config: RunConfig
    defaults: dict[str, object]
    """Field without effect at this point -> its default, which it takes."""
    lines: tuple[str, ...]
    """What a run would say of these."""

    @property
    def overrides(self) -> list[str]:
        """What the trial is started with beyond what is fixed."""
        return [*assignments(self.point), *assignments({name: _text(value) for name, value in self.defaults.items()})]

    @property
    def key(self) -> str:
        """Equal for points that are the same configuration."""
        return self.config.model_dump_json()


@dataclass
class Survey:
    """What checking a space has found."""

    settled: list[Settled] = field(default_factory=list)

    def distinct(self) -> list[Point]:
        """The points, without those that settings without effect have made the same as one before."""
        kept = {settled.key: settled.point for settled in reversed(self.settled)}
        return [settled.point for settled in self.settled if kept[settled.key] is settled.point]

    def warnings(self) -> list[str]:
        """One line for each rule by which a setting takes its default; raises UserError where one has no effect at
        all."""
        counts = Counter(line for item in self.settled for line in item.lines)
        for name in {name: None for item in self.settled for name in item.defaults}:
            if not any(_has_effect(name, item, self.settled) for item in self.settled):
                line = next(line for item in self.settled if name in item.defaults for line in item.lines)
                raise UserError(f"{line}; it has no effect anywhere in this sweep")
        total = len(self.settled)
        return [f"{line}: it takes its default there, at {count} of {total} points" for line, count in counts.items()]


def assignments(values: Mapping[str, str]) -> list[str]:
    """Field -> text as `field=text`."""
    return [f"{name}={text}" for name, text in values.items()]


def settle(path: str, fixed: Iterable[str], point: Point) -> Settled:
    """Load the configuration of a point, with the default of each setting that has no effect there.

    Raises:
        UserError: the point breaks a rule, which is told with the point.
    """
    defaults: dict[str, object] = {}
    lines: list[str] = []
    given = [*fixed, *assignments(point)]
    try:
        for _ in range(_MOST_ROUNDS):
            texts = {name: _text(value) for name, value in defaults.items()}
            try:
                return Settled(point, load(path, [*given, *assignments(texts)]), defaults, tuple(lines))
            except UnusedError as error:
                # An item of a list cannot be set by its name.
                if error.defaults.keys() & defaults.keys() or any(map(_in_a_list, error.defaults)):
                    raise
                defaults |= error.defaults
                lines += error.problems
        raise UserError(*lines)
    except UserError as error:
        where = f" (at {', '.join(assignments(point))})"
        told = [line if _names_its_value(line, point) else f"{line}{where}" for line in error.problems]
        raise UserError(*told) from None


def survey(path: str, fixed: Iterable[str], points: Iterable[Point]) -> Survey:
    """Settle points; raises UserError for the first that is wrong."""
    return Survey([settle(path, fixed, point) for point in points])


def probes(space: Space) -> Iterable[Point]:
    """Points that stand for all others: listed values and ends of ranges, in every combination if these are few."""
    every = math.prod(len(item.ends) for item in space.varied)
    return space.corners() if every <= _MOST_CORNERS else _one_by_one(space)


def check_metric(settled: Settled, metric: str, *, ordered: bool) -> None:
    """Raise UserError where trials never write the metric, or with `ordered` one that has no better and worse."""
    config, kind = settled.config, job_kind(settled.config)
    if not config.data.evaluates:
        raise UserError(
            f"--metric: needs {kind.held_out}, on whose rows trials are measured, got {metric[:80]} without"
        )
    if not config.algorithm.eval_every:
        raise UserError(f"--metric: needs algorithm.eval_every, got {metric[:80]} without")
    try:
        require_metric(kind.metric_names(), "--metric:", metric)
    except ValueError as error:
        raise UserError(str(error)) from None
    if ordered and metric in UNORDERED:
        rule = f"required, min or max, with --metric {metric}, of which more is not better"
        raise UserError(f"--mode: {rule}, got nothing")


def _one_by_one(space: Space) -> Iterable[Point]:
    """Each value once, and no combinations."""
    first = next(space.corners())
    yield first
    for item in space.varied:
        for value in islice(item.ends, 1, None):
            yield {**first, item.field: value}


def _has_effect(name: str, item: Settled, others: list[Settled]) -> bool:
    if name in item.defaults:
        return False
    if name not in item.point:  # it is fixed, to another value than its default
        return True
    default = next(other.defaults[name] for other in others if name in other.defaults)
    return parse(item.point[name], name) != default


def _in_a_list(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _names_its_value(line: str, point: Point) -> bool:
    """Whether a problem is one of a single field that varies, as its line says by itself."""
    return any(line.startswith(f"{name}: ") for name in point)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # as YAML reads it, too
