"""Lines of metrics and samples: each whole or not at all, and what is missing of steps that are done."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.config import UserError
from launch.config import RunConfig, validate
from launch.tracking import tracker as tracking
from launch.tracking.tracker import Tracker


def job(directory: Path, name: str = "grpo", **tracking: Any) -> RunConfig:
    values: dict[str, Any] = {
        "algorithm": {"name": name, "steps": 9},
        "model": {"init": {}},
        "data": {"train": "rows.jsonl"},
        "tracking": {"wandb": False, **tracking},
        "run": {"output": str(directory)},
    }
    return validate(values | ({"reward": {"functions": ["exact_match"]}} if name == "grpo" else {}))


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take a part of it, and the next one fail."""
    tracker, write = Tracker(tmp_path, job(tmp_path)), os.write
    room = 100

    def little(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(file, data[: min(room, 7)])
        room -= taken
        return taken

    tracker.log(1, {"loss/sft": 0.5})
    monkeypatch.setattr(tracking.os, "write", little)
    tracker.log(2, {"loss/sft": 0.25})
    room = 10
    tracker.log(3, {"loss/sft": 0.125})
    tracker.log(4, {"loss/sft": 0.125})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]
    room = 40  # of two lines that wait, one
    tracker.log(5, {"loss/sft": 0.125})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    monkeypatch.undo()
    tracker.log(6, {"loss/sft": 0.125})
    tracker.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]


def test_numbers_that_json_lacks_are_null_wherever_they_stand(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, job(tmp_path))
    tracker.samples(4, [{"parts": {"a": math.nan, 7: (1.5, [-math.inf, {"b": math.inf}])}, "n": 3, "ok": True}])
    tracker.close()
    [line] = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 4, "parts": {"a": None, "7": [1.5, [None, {"b": None}]]}, "n": 3, "ok": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "missing"),
    [
        ("grpo", {}, ["samples.jsonl is gone: it has nothing of steps 1 to 3, which are done"]),
        ("grpo", {"samples_per_step": 0}, []),
        ("sft", {}, []),
    ],
)
def test_samples_are_missed_only_where_a_step_writes_some(
    tmp_path: Path, name: str, settings: dict[str, Any], missing: list[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(4)))
    told: list[str] = []
    Tracker(tmp_path, job(tmp_path, name, **settings), resumed_step=3, warn=told.append).close()
    assert told == missing


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([], []),
        ([4], ["step 4 came after the checkpoint of step 3: it is done again"]),
        ([4, 5], ["steps 4 to 5 came after the checkpoint of step 3: they are done again"]),
    ],
)
def test_steps_that_come_again_are_told_once(tmp_path: Path, later: list[int], told: list[str]) -> None:
    """Their samples come again as well."""
    for name in ("metrics", "samples"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in [1, 2, 3, *later]))
    found: list[str] = []
    Tracker(tmp_path, job(tmp_path), resumed_step=3, warn=found.append).close()
    assert found == told
    assert steps(tmp_path / "metrics.jsonl") == steps(tmp_path / "samples.jsonl") == [1, 2, 3]


def test_what_is_told_without_a_listener_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Tracker(tmp_path, job(tmp_path, "sft"), resumed_step=1).close()
    assert capsys.readouterr() == ("", "warning: metrics.jsonl is gone: it has nothing of step 1, which is done\n")


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError) as caught:
        Tracker(tmp_path, job(tmp_path))
    assert str(caught.value) == (
        f"run.output: must be a directory whose files can be written (Is a directory: {tmp_path}/metrics.jsonl), "
        f"got {tmp_path.parent}"
    )


def test_tensorboard_gets_each_metric_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    def writer(directory: str, *, purge_step: int) -> SimpleNamespace:
        written.append(directory)
        return SimpleNamespace(add_scalar=lambda *values: written.append(values), close=lambda: written.append("end"))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    tracker = Tracker(tmp_path, job(tmp_path, tensorboard=True))
    tracker.log(2, {"loss/policy": 0.5, "reward/mean": 0.25})
    tracker.close()
    assert written == [str(tmp_path / "tensorboard"), ("loss/policy", 0.5, 2), ("reward/mean", 0.25, 2), "end"]


@pytest.mark.parametrize("again", [1, 0])
def test_tokens_of_steps_that_come_again_are_cut_also_where_no_more_are_told(tmp_path: Path, again: int) -> None:
    told = tmp_path / "tokens.jsonl"
    tracker = Tracker(tmp_path, job(tmp_path))
    for step in (1, 2, 3):
        tracker.tokens(step, [{"pieces": ["b", "\ufffd"], "logprobs": [-0.5, -math.inf]}, {"pieces": []}])
    tracker.close()
    assert json.loads(told.read_text().splitlines()[0]) == {
        "step": 1,
        "pieces": ["b", "\ufffd"],
        "logprobs": [-0.5, None],
    }
    with told.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "pie')
    warned: list[str] = []
    Tracker(tmp_path, job(tmp_path, token_samples=again), resumed_step=2, warn=warned.append).close()
    assert steps(told) == [1, 1, 2, 2]
    assert not any("tokens.jsonl" in line for line in warned)
    Tracker(tmp_path, job(tmp_path, token_samples=0)).close()
    assert not told.exists(), "an earlier run's are not this one's"
    Tracker(tmp_path, job(tmp_path, "sft")).close()
    assert not told.exists(), "which samples nothing has no tokens to tell"


def test_tokens_are_those_of_samples_that_are_written(tmp_path: Path) -> None:
    """The default, which config.json gives, may stay; another number would have no effect."""
    none = {"samples_per_step": 0, "groups_per_step": 0}
    assert job(tmp_path, **none, token_samples=1).tracking.token_samples == 1
    for others in ({"samples_per_step": 1, "groups_per_step": 0}, {"samples_per_step": 0}):
        assert job(tmp_path, **others, token_samples=2).tracking.token_samples == 2
    with pytest.raises(UserError) as caught:
        job(tmp_path, **none, token_samples=2)
    assert str(caught.value).endswith(
        "tracking.token_samples must be left out with samples_per_step 0 and groups_per_step 0, as it is of their "
        "completions, got 2"
    )
