"""The benchmarks can be started, and the one of learning curves says who learns as well."""

import importlib
from pathlib import Path

import pytest

from benchmarks.compare_trl import BenchmarkError
from benchmarks.learning import Curve, curve, report, settings

MODULES = sorted(path.stem for path in (Path(__file__).parent.parent / "benchmarks").glob("*.py"))
OTHER_ENVIRONMENT = {"trl_grpo"}
"""Run where TRL is installed."""


@pytest.mark.parametrize("name", [name for name in MODULES if name not in OTHER_ENVIRONMENT])
def test_what_a_benchmark_imports_is_there(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_ways_are_settings() -> None:
    assert settings("n=4-off") == ["algorithm.importance_correction=null", "algorithm.max_staleness=4"]
    assert settings("tail") == ["rollout.tail=postpone"]
    for wrong in ("n=", "n=x", "tail-offf", "m=1", "n=1-off2"):
        with pytest.raises(BenchmarkError, match=f"got {wrong}"):
            settings(wrong)


def made(way: str, seed: int, final: float) -> Curve:
    lines = [
        {"step": 0, "eval/reward/mean": 0.4},
        {"step": 1, "staleness/mean": 1.0, "staleness/max": 2.0, "policy/sampler_kl": 0.5, "left_out": {"stale": [3]}},
        {"step": 2, "staleness/mean": 0.0, "staleness/max": 0.0, "eval/reward/mean": final},
    ]
    return curve(way, seed, lines)


def test_a_curve_is_what_the_metrics_say() -> None:
    found = made("n=2", 0, 0.9)
    assert (found.accuracies, found.final) == ({0: 0.4, 2: 0.9}, 0.9)
    assert (found.staleness, found.oldest, found.sampler_kl, found.left_out) == (0.5, 2.0, 0.5, 1)


@pytest.mark.parametrize(
    ("finals", "told"),
    [
        ((0.90, 0.93), "as well as n=0**: +0.015"),
        ((0.87, 0.87), "as well as n=0**: -0.030"),
        ((0.85, 0.87), "NOT as well as n=0**: -0.040"),
        ((0.99, 0.99), "better than n=0**: +0.090"),
        ((0.90, float("nan")), "NOT as well as n=0**: +nan"),
    ],
)
def test_ways_are_compared_by_the_same_seeds(finals: tuple[float, float], told: str) -> None:
    curves = [made("n=0", seed, 0.9) for seed in (0, 1)] + [made("n=2", seed, finals[seed]) for seed in (0, 1)]
    assert told in report(curves, "")
