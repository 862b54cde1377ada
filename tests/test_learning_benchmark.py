"""Benchmarks find what they take from each other, and the one of learning curves says who learns as well."""

import ast
from pathlib import Path

import pytest

from benchmarks.compare_trl import BenchmarkError
from benchmarks.learning import Curve, curve, report, settings

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def defined(module: ast.Module) -> set[str]:
    """Names that a module has at its top."""
    found = set[str]()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(each.asname or each.name).split(".")[0] for each in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found


def test_what_benchmarks_take_from_each_other_is_there() -> None:
    """Read, as importing all of them takes ten seconds, and one of them TRL."""
    modules = {path.stem: ast.parse(path.read_text()) for path in BENCHMARKS.glob("*.py")}
    names = {f"benchmarks.{stem}": defined(module) for stem, module in modules.items()} | {"benchmarks": set(modules)}
    taken = [
        (stem, node.module, each.name)
        for stem, module in modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module in names
        for each in node.names
    ]
    assert len(taken) > 30
    assert [each for each in taken if each[2] not in names[each[1] or ""]] == []


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
