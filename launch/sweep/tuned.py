"""Ray Tune as sweeps use it: its spaces and searchers say what trials try, its ASHA which of them end early.

Tune's own loop (`Tuner`) is not used. It wants a Ray of its own, for actors that would do nothing but wait for a
trial's process; it goes on from pickles, which are code; and what it runs is killed when it is. Trials are processes
here, and what a sweep goes on from are their own files.
"""

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.variant_generator import generate_variants

from actors.config import UserError
from launch.sweep.space import Listed, Point, Range, Space

NO_LIMIT = 10**9
"""Steps of runs of which nobody knows how many they have."""


class Optuna:
    """Optuna's tree-structured Parzen estimator (TPE), by Tune's searcher for it: each trial is chosen by the values of
    those before."""

    def __init__(self, space: Space, metric: str, mode: str, seed: int, known: int) -> None:
        """`known`: trials of earlier starts of the sweep; their random points shall not be drawn again.

        Raises:
            UserError: Optuna is not installed.
        """
        require_optuna()
        from ray.tune.search.optuna import OptunaSearch

        optuna = importlib.import_module("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each trial
        self._space, self._metric, self._asked = space, metric, set[int]()
        logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
        domains = OptunaSearch.convert_search_space(_domains(space, grid=False))
        self._searcher = OptunaSearch(domains, metric=metric, mode=mode, seed=seed + known)

    def point(self, number: int) -> Point | None:
        """That of a trial, numbered from 1."""
        self._asked.add(number)
        found = self._searcher.suggest(str(number))
        return None if found is None else _texts(self._space, found)

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """A trial, of this start of the sweep or an earlier one, has ended with this value, or with none."""
        if number in self._asked:
            result = {} if value is None else {self._metric: value}
            self._searcher.on_trial_complete(str(number), result, error=value is None)
            return
        values: dict[str, Any] = {
            item.field: point[item.field] if isinstance(item, Listed) else _number(item, point[item.field])
            for item in self._space.varied
        }
        self._searcher.add_evaluated_point(values, 0.0 if value is None else value, error=value is None)


def require_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    try:
        importlib.import_module("optuna")
    except ImportError:
        raise UserError(
            "--search: needs the package optuna (pip install 'tandem-rlhf[sweep]') for optuna, got it without"
        ) from None


def points(space: Space, trials: int, seed: int) -> list[Point]:
    """The points of so many trials by Tune's generator: the grid of lists, and again with other drawn values.

    Example: with 2 listed values and a range, 6 trials draw 3 values for each of the 2.
    """
    state, found = np.random.default_rng(seed), list[Point]()
    while len(found) < trials:
        for resolved, _ in generate_variants(_domains(space, grid=True), random_state=state):
            found.append(_texts(space, {path[0]: value for path, value in resolved.items()}))
    return found[:trials]


class EarlyStop:
    """Asynchronous successive halving (ASHA, arXiv 1810.05934) over the steps of trials, by Tune's scheduler.

    At `grace` steps, and at each `reduction` times as many, a trial goes on only if its value is among the best 1 /
    `reduction` of those that came there.
    """

    def __init__(self, metric: str, mode: str, *, grace: int, reduction: float, steps: int | None) -> None:
        """`steps`: of the longest trial; None: not known."""
        self._metric, self._trials = metric, dict[int, TuneTrial]()
        most = max(steps or NO_LIMIT, grace)
        self._asha = ASHAScheduler(
            "step", metric, mode, max_t=most, grace_period=grace, reduction_factor=reduction, stop_last_trials=False
        )

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Whether a trial with this finite value of its metric after this step goes on."""
        trial = self._trials.get(number)
        if trial is None:
            trial = self._trials[number] = TuneTrial("run", trial_id=str(number), stub=True)
            self._asha.on_trial_add(_NOBODY, trial)
        row = {"step": step, self._metric: value}
        return self._asha.on_trial_result(_NOBODY, trial, row) == TrialScheduler.CONTINUE


_NOBODY: Any = None
"""In place of Tune's controller, which ASHA asks nothing."""


def _domains(space: Space, *, grid: bool) -> dict[str, Any]:
    """Field -> Tune's domain; of a searcher, which knows no grid, lists are drawn from like choices."""
    return {item.field: _domain(item, grid=grid) for item in space.varied}


def _domain(item: Listed | Range, *, grid: bool) -> Any:
    if isinstance(item, Listed):
        return tune.grid_search(item.options) if grid and not item.drawn else tune.choice([*item.options])
    if item.name == "randint":
        return tune.randint(int(item.low), int(item.high))
    return {"uniform": tune.uniform, "loguniform": tune.loguniform}[item.name](item.low, item.high)


def _texts(space: Space, values: Mapping[str, Any]) -> Point:
    """YAML texts of what was drawn, in the order of the command."""
    return {
        item.field: values[item.field] if isinstance(item, Listed) else repr(_plain(item, values[item.field]))
        for item in space.varied
    }


def _plain(item: Range, value: Any) -> float | int:
    """As Python's own number: numpy's has another text."""
    return int(value) if item.name == "randint" else float(value)


def _number(item: Range, text: str) -> float | int:
    return _plain(item, float(text))
