"""Links that lie where a run directory's new files are first written lead nowhere: what they name stays as it was."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors.files.own_files import create
from launch.config import validate
from launch.run import run
from launch.tracking import wandb_feeder
from launch.tracking.curves import draw_curves
from launch.tracking.history import cut
from launch.tracking.wandb_run import known_run
from launch.verbs.mining_parts import _replaced


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("kept")
    return tmp_path / "victim"


def link(victim: Path, name: str) -> Path:
    """A file of the run directory, of which the link is put in place."""
    path = victim.parent / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(victim)
    return path


def test_no_link_is_followed(victim: Path) -> None:
    directory = victim.parent / "run"
    metrics = directory / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss/nll": 1.0}) + "\n" for step in (1, 2)))
    link(victim, "curves.png.partial")
    assert draw_curves(directory) == directory / "curves.png"
    link(victim, "metrics.jsonl.new")
    assert cut(metrics, 1).again == {2}
    link(victim, "run.json.partial")
    wandb_feeder._keep(directory / "run.json", {"step": 3})
    link(victim, "wandb/run.json")
    known_run(directory, {}, same=False, may_be=False)
    link(victim, "mined.jsonl.tmp")
    with _replaced(directory / "mined.jsonl") as partial:
        partial.write_text("{}")
    with open(create(link(victim, "manifest.json")), "w") as file:
        file.write("{}")
    assert victim.read_text() == "kept"
    made = ("curves.png", "metrics.jsonl", "run.json", "wandb/run.json", "mined.jsonl", "manifest.json")
    assert [name for name in made if (directory / name).is_symlink() or not (directory / name).is_file()] == []


class _Roster(dict[str, Any]):
    once_more: ClassVar[list[Any]] = []


def test_an_export_is_written_into_no_other_directory(tmp_path: Path) -> None:
    class Policy:
        def call(self, _: Any, directory: Path, chat: Any = None) -> list[Any]:
            directory.mkdir(exist_ok=True)
            (directory / "config.json").write_text("{}")
            return [[]] if chat else [None]

    values = {
        "algorithm": {"name": "sft", "steps": 1},
        "model": {"init": {}},
        "data": {"train": "rows.jsonl"},
        "run": {"output": str(tmp_path), "name": "first"},
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "first").mkdir()
    for name in ("export", "export.partial"):
        (tmp_path / "first" / name).symlink_to(tmp_path / "other")
    config = validate(values)
    roster: Any = _Roster(policy=Policy())
    with run._prepared_export(roster, config, print):
        run._export(Policy(), config)
    assert list((tmp_path / "other").iterdir()) == []
    assert (tmp_path / "first/export/config.json").is_file()
