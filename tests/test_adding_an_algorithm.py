"""CONTRIBUTING's worked example, taken literally: its blocks go into a copy of the code, which tests it and trains."""

import json
from pathlib import Path

import pytest

from tests.worked_example import Example, run

EXAMPLE = Example.of("CONTRIBUTING.md", "## Adding an algorithm")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the example added to it."""
    return EXAMPLE.add_to_copy(tmp_path_factory.mktemp("copy"))


def test_the_example_has_all_its_parts() -> None:
    assert [name for kind, name, _ in EXAMPLE.whole if kind == "new"] == [
        "algorithms/offline/slic.py",
        "tests/test_slic.py",
        "configs/slic.yaml",
    ]
    assert [name for kind, name, _ in EXAMPLE.whole if kind == "append"] == [
        "algorithms/config_offline.py",
        "launch/kinds/offline.py",
    ]
    assert len(EXAMPLE.diffs) == 1


def test_the_example_follows_the_style(copy: Path, environment: dict[str, str]) -> None:
    assert EXAMPLE.files == [
        "algorithms/config.py",
        "algorithms/config_offline.py",
        "algorithms/offline/slic.py",
        "launch/kinds/offline.py",
        "launch/kinds/table.py",
    ]
    run(copy, environment, "-m", "ruff", "check", *EXAMPLE.files)
    run(copy, environment, "-m", "ruff", "format", "--check", *EXAMPLE.files)


def test_the_examples_own_test_passes(copy: Path, environment: dict[str, str]) -> None:
    assert "1 passed" in run(copy, environment, "-m", "pytest", "-q", "tests/test_slic.py", "-p", "no:cacheprovider")


def test_the_example_trains(copy: Path, environment: dict[str, str]) -> None:
    run(copy, environment, "-m", "launch", "check", "configs/slic.yaml")
    run(copy, environment, "-m", "launch", "run", "configs/slic.yaml")
    steps = [json.loads(line) for line in (copy / "outputs/slic/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 61))
    first, last = (sum(step["loss/slic"] for step in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < first / 2
    assert steps[-1]["eval/accuracy"] > 0.8
    assert (copy / "outputs/slic/export/model.safetensors").is_file()
