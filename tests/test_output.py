"""The directory of a run: what cannot be made, is not a run's, or holds a damaged checkpoint is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.output import check_output
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints
from launch.run.identity import identity
from launch.sizes.machine import free_disk


def job(output: object, name: str = "first", **checkpoint: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "checkpoint": checkpoint,
            "run": {"output": str(output), "name": name},
        }
    )


def refused(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_output(config)
        Checkpoints(config).latest()
    (line,) = caught.value.problems
    assert len(line) < 500
    return line


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("/nowhere/at/all")
    deep = "a" + "/a" * ((4060 - len(str(tmp_path))) // 2)
    reasons = {
        "file": f"{tmp_path}/file is a file",
        "link": f"{tmp_path}/link is a link to nowhere",
        "a" * 256: "a name in it has 256 bytes, 255 is the most",
        "é" * 200: "a name in it has 400 bytes, 255 is the most",
        deep: f"the path has {len(f'{tmp_path}/{deep}/first')} bytes, 4035 is the most",
    }
    for name, reason in reasons.items():
        line = refused(job(f"{tmp_path}/{name}"))
        assert line.startswith(f"run.output: must be a directory that can be written ({reason}), got ")
    assert free_disk(tmp_path / ("a" * 300)) == pytest.approx(free_disk(tmp_path), rel=0.5)
    check_output(job(tmp_path / "new/and/deep"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_directory_of_other_files_is_left_alone(tmp_path: Path, resume: bool) -> None:
    """A run takes what an earlier one left for its own, and removes it."""
    directory = tmp_path / "first"
    directory.mkdir()
    check_output(job(tmp_path, resume=resume))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.json"):  # a model's
        (directory / name).write_text('{"model_type": "qwen2"}')
    assert refused(job(tmp_path, resume=resume)) == (
        f"run.name: must be a new directory or an earlier run's, and {directory} holds other files "
        f"(config.json, model.safetensors, tokenizer.json and 1 more), got first"
    )
    (directory / "config.json").write_text(json.dumps(job(tmp_path).model_dump(mode="json")))
    check_output(job(tmp_path, resume=resume))
    (directory / "config.json").write_text("")  # cut off by a full disk
    (directory / "metrics.jsonl").write_text("")
    check_output(job(tmp_path, resume=resume))


@pytest.mark.parametrize("manifest", ["", "{", "[]", "7", "{}", '{"state": 5, "files": 7, "identity": []}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "first/logs").mkdir(parents=True)
    (tmp_path / "first/logs/driver.id").write_text("x")
    checkpoint = tmp_path / "first/checkpoints/step-5"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text("step-5")
    anew = "to start anew: checkpoint.resume=false, or another run.name than first"
    assert refused(job(tmp_path)).endswith(f"(FileNotFoundError); {anew}")
    (checkpoint / "manifest.json").write_text(manifest)
    line = refused(job(tmp_path))
    assert line.startswith(f"checkpoint.resume: {checkpoint} has no readable manifest (") and line.endswith(anew)
    assert Checkpoints(job(tmp_path, resume=False)).latest() is None


def test_a_damaged_pointer_or_file_is_one_line(tmp_path: Path) -> None:
    checkpoints = tmp_path / "first/checkpoints"
    (checkpoints / "step-5").mkdir(parents=True)
    (tmp_path / "first/metrics.jsonl").write_text("")
    for pointer in (b"", b"../../etc", b"step-5.partial"):
        (checkpoints / "latest").write_bytes(pointer)
        rule = f"checkpoint.resume: {checkpoints}/latest must name a checkpoint such as step-20, got "
        assert refused(job(tmp_path)).startswith(rule)
    (checkpoints / "latest").write_bytes(b"\xff\xfe")
    assert "latest cannot be read (UnicodeDecodeError)" in refused(job(tmp_path))
    (checkpoints / "latest").write_text("step-5")
    manifest = {"state": {"step": 5}, "files": {"rank0.pt": 3}, "identity": identity(job(tmp_path))}
    (checkpoints / "step-5/manifest.json").write_text(json.dumps(manifest))
    assert "step-5 is damaged, rank0.pt is missing; to start anew" in refused(job(tmp_path))
    (checkpoints / "step-5/rank0.pt").write_text("")
    assert "step-5 is damaged, rank0.pt has 0 bytes, not 3; to start anew" in refused(job(tmp_path))


def test_what_a_batch_job_puts_there_first_is_no_hindrance(tmp_path: Path) -> None:
    directory = tmp_path / "outputs/first"
    directory.mkdir(parents=True)
    for name in ("123.out", "train.log", "note.md"):
        (directory / name).write_text("")
    check_output(job(str(tmp_path / "outputs")))
    (directory / "thesis.tex").write_text("")
    assert "holds other files" in refused(job(str(tmp_path / "outputs")))
