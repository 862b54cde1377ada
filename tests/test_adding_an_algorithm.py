"""CONTRIBUTING's worked example, taken literally: its blocks go into a copy of the code, which tests it and trains."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTION = (
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Adding an algorithm")[2].partition("\n## ")[0]
)
WHOLE = re.findall(r"<!-- (new|append) (\S+) -->\n```\w+\n(.*?)```", SECTION, re.DOTALL)
DIFFS = re.findall(r"```diff\n(.*?)```", SECTION, re.DOTALL)


def apply(diff: str, root: Path) -> None:
    """Replace the old lines of every hunk, which must stand in its file once, by the new ones."""
    for part in diff.split("--- ")[1:]:
        name, _, hunks = part.partition("\n")
        text = (root / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{name} must hold once what CONTRIBUTING.md shows:\n{old}"
            text = text.replace(old, new)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the example added to it."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("launch", "algorithms", "actors"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for kind, name, text in WHOLE:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        assert path.exists() == (kind == "append")
        path.write_text(
            path.read_text(encoding="utf-8") + f"\n\n{text}" if kind == "append" else text, encoding="utf-8"
        )
    for diff in DIFFS:
        apply(diff, root)
    return root


def run(copy: Path, environment: dict[str, str], *command: str) -> str:
    """What a command in the copy prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_has_all_its_parts() -> None:
    assert [name for kind, name, _ in WHOLE if kind == "new"] == [
        "algorithms/slic.py",
        "tests/test_slic.py",
        "configs/slic.yaml",
    ]
    assert [name for kind, name, _ in WHOLE if kind == "append"] == [
        "algorithms/config_offline.py",
        "launch/kinds/offline.py",
    ]
    assert len(DIFFS) == 1


def test_the_example_follows_the_style(copy: Path, environment: dict[str, str]) -> None:
    files = [
        "algorithms/slic.py",
        "algorithms/config_offline.py",
        "algorithms/config.py",
        "launch/kinds/offline.py",
        "launch/kinds/table.py",
    ]
    run(copy, environment, "ruff", "check", *files)
    run(copy, environment, "ruff", "format", "--check", *files)


def test_the_examples_own_test_passes(copy: Path, environment: dict[str, str]) -> None:
    assert "1 passed" in run(copy, environment, "pytest", "-q", "tests/test_slic.py", "-p", "no:cacheprovider")


def test_the_example_trains(copy: Path, environment: dict[str, str]) -> None:
    run(copy, environment, "launch", "check", "configs/slic.yaml")
    run(copy, environment, "launch", "run", "configs/slic.yaml")
    steps = [json.loads(line) for line in (copy / "outputs/slic/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 61))
    first, last = (sum(step["loss/slic"] for step in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < first / 2
    assert steps[-1]["eval/accuracy"] > 0.8
    assert (copy / "outputs/slic/export/model.safetensors").is_file()
