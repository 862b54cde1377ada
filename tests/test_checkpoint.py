"""Checkpoints: never half-written, never of another run, and the latest one is never pruned."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from actors.config import UserError
from actors.files.parts import Entry
from actors.train.shards import Shards
from launch.config import RunConfig, validate
from launch.run import checkpoint
from launch.run.checkpoint import Checkpoints, Written

ROOT = Path(__file__).resolve().parent.parent


def config_for(directory: Path, **changes: dict[str, Any]) -> RunConfig:
    values: dict[str, dict[str, Any]] = {
        "algorithm": {"name": "sft", "steps": 30},
        "model": {"init": {"hidden_size": 32}},
        "data": {"train": "rows.jsonl"},
        "run": {"output": str(directory), "name": "first"},
    }
    return validate({section: {**values.get(section, {}), **changes.get(section, {})} for section in values | changes})


def writer(claimed: int | None = None, **parts: Entry) -> Callable[[Path], Written]:
    """A rank that writes one file, a second rank that saw it half-written, and parts without files."""

    def write(directory: Path) -> Written:
        (directory / "state").mkdir()
        (directory / "state/rank0.pt").write_text("weights")
        size = len("weights") if claimed is None else claimed
        return Written(parts, [("state/rank0.pt", size, None), ("state/rank0.pt", size // 2, None)])

    return write


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "first/checkpoints").iterdir())


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    (line,) = caught.value.problems
    return line


def test_a_saved_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    assert Checkpoints(config).latest() is None
    Checkpoints(config).save(3, writer(batches={"epoch": 1}))
    found = Checkpoints(config).latest()
    assert found is not None
    assert (found.step, found.parts) == (3, {"batches": {"epoch": 1}})
    assert (found.directory / "state/rank0.pt").read_text() == "weights"


def test_the_newest_are_kept_even_beside_higher_numbers(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path, checkpoint={"keep": 2}))
    for step in (10, 20, 30):
        checkpoints.save(step, writer())
    assert steps(tmp_path) == ["latest", "step-20", "step-30"]
    checkpoints.save(5, writer())
    assert steps(tmp_path) == ["latest", "step-30", "step-5"]
    only = Checkpoints(config_for(tmp_path, checkpoint={"keep": 1}))
    only.save(6, writer())
    assert steps(tmp_path) == ["latest", "step-6"]
    found = only.latest()
    assert found is not None
    assert found.step == 6


def measured(directory: Path, by: str = "eval/loss", **checkpoint: Any) -> Checkpoints:
    """Of a run whose best checkpoint is the one by this metric."""
    changes: dict[str, Any] = {"algorithm": {"best_by": by}, "data": {"eval": "rows.jsonl"}, "checkpoint": checkpoint}
    return Checkpoints(config_for(directory, **changes))


def best(step: int) -> Entry:
    return {"metric": "eval/loss", "value": 1 / step}


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_one_is_kept_on_top_of_the_newest(tmp_path: Path, keep: int) -> None:
    checkpoints = measured(tmp_path, keep=keep)
    assert checkpoints.best() is None
    checkpoints.save(1, writer(best=best(1)), best=True)
    for step in (2, 3, 4):
        checkpoints.save(step, writer(best=best(1)))
    newest = [f"step-{step}" for step in (3, 4)][-keep:]
    assert steps(tmp_path) == ["best", "latest", "step-1", *newest]
    assert checkpoints.best() == tmp_path / "first/checkpoints/step-1"
    found = checkpoints.latest()
    assert found is not None and found.step == 4
    for step in (5, 6):
        checkpoints.save(step, writer(best=best(5)), best=step == 5)
    assert steps(tmp_path) == ["best", "latest", *["step-4"][: keep - 1], "step-5", "step-6"], "no longer the first one"
    assert checkpoints.best() == tmp_path / "first/checkpoints/step-5"


def test_the_best_by_another_metric_is_none(tmp_path: Path) -> None:
    measured(tmp_path).save(1, writer(best=best(1)), best=True)
    other = measured(tmp_path, "eval/sequence_probability", keep=1)
    assert measured(tmp_path).best() is not None and other.best() is None
    assert Checkpoints(config_for(tmp_path)).best() is None
    other.save(2, writer(best={"metric": "eval/sequence_probability"}))
    assert steps(tmp_path) == ["best", "latest", "step-2"]
    assert measured(tmp_path).best() is None, "it has gone"


def test_a_new_run_removes_what_an_earlier_one_left(tmp_path: Path) -> None:
    Checkpoints(config_for(tmp_path)).save(30, writer())
    anew = Checkpoints(config_for(tmp_path, checkpoint={"resume": False}))
    assert anew.latest() is None
    anew.prepare(anew.latest())
    assert steps(tmp_path) == []


def test_a_resumed_run_removes_only_what_was_not_finished(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path, checkpoint={"keep": 3}))
    for step in (10, 20, 30):
        checkpoints.save(step, writer())
    directory = tmp_path / "first/checkpoints"
    (directory / "latest").write_text("step-20")  # killed after step-30 was in place, before the pointer was
    (directory / "step-40.partial").mkdir()
    checkpoints.prepare(checkpoints.latest())
    assert steps(tmp_path) == ["latest", "step-10", "step-20"]


def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path))
    checkpoints.save(1, writer())

    def fail(directory: Path) -> Written:
        (directory / "state").mkdir()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(2, fail)
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize(
    ("claimed", "missing"),
    [
        (8, "state/rank0.pt has 7 bytes, not 8"),
        (6, "state/rank0.pt has 7 bytes, not 6"),
        (None, "state/rank1.pt is missing"),
    ],
)
def test_files_written_on_another_disk_are_noticed(tmp_path: Path, claimed: int | None, missing: str) -> None:
    def write(directory: Path) -> Written:
        found = writer(claimed=claimed)(directory)
        return found if claimed else Written({}, [*found.files, ("state/rank1.pt", 5, None)])

    checkpoints = Checkpoints(config_for(tmp_path))
    line = complaint(lambda: checkpoints.save(1, write))
    assert line.startswith(f"run.output: must be on storage that all nodes share ({missing} after")
    assert line.endswith(f"got {tmp_path}")
    assert checkpoints.latest() is None


def test_whichever_rank_has_seen_a_file_first_its_largest_size_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path))
    for step, order in ((1, 1), (2, -1)):
        checkpoints.save(step, lambda directory, order=order: Written({}, [*writer()(directory).files][::order]))
        found = checkpoints.latest()
        assert found is not None and found.step == step


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path))
    directory = checkpoints.save(1, writer())
    for content in ("weig", "weights and more"):
        (directory / "state/rank0.pt").write_text(content)
        size = len(content)
        expected = f"is damaged, state/rank0.pt has {size} bytes, not 7; to start anew: checkpoint.resume=false"
        assert expected in complaint(checkpoints.latest)
    (directory / "manifest.json").write_text("{}")
    assert "has no readable manifest (KeyError)" in complaint(checkpoints.latest)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("run", {"seed": 7}, "run.seed: must be 0 to resume from {}, got 7"),
        ("model", {"init": {"hidden_size": 64}}, "model.init.hidden_size: must be 32 to resume from {}, got 64"),
        ("policy", {"optimizer": {"lr": 0.5}}, "policy.optimizer.lr: must be 1e-06 to resume from {}, got 0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, section: str, values: dict, line: str) -> None:
    directory = Checkpoints(config_for(tmp_path)).save(1, writer())
    found = complaint(Checkpoints(config_for(tmp_path, **{section: values})).latest)
    anew = "; to start anew: checkpoint.resume=false, or another run.name than first"
    assert found == line.format(directory) + anew


def test_settings_that_an_older_checkpoint_does_not_know_are_those_that_were_not_given(tmp_path: Path) -> None:
    directory = Checkpoints(config_for(tmp_path)).save(1, writer())
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["identity"]["policy"]["ema_decay"], manifest["identity"]["policy"]["optimizer"]["warmup_ratio"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert Checkpoints(config_for(tmp_path)).latest() is not None
    line = complaint(Checkpoints(config_for(tmp_path, policy={"ema_decay": 0.9})).latest)
    assert line.startswith(f"policy.ema_decay: must be null to resume from {directory}, got 0.9; ")


def test_a_reference_that_follows_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    dpo: dict[str, dict[str, Any]] = {"algorithm": {"name": "dpo"}}
    follows = dpo | {"reference": {"sync_every": 5}}
    directory = Checkpoints(config_for(tmp_path, **dpo)).save(1, writer())
    line = complaint(Checkpoints(config_for(tmp_path, **follows)).latest)
    assert line.startswith(f"reference: must be null to resume from {directory}, got ")
    Checkpoints(config_for(tmp_path, **follows)).save(1, writer())
    assert Checkpoints(config_for(tmp_path, **follows)).latest() is not None
    assert complaint(Checkpoints(config_for(tmp_path, **dpo)).latest).startswith("reference: must be {")


def test_another_algorithm_is_refused(tmp_path: Path) -> None:
    Checkpoints(config_for(tmp_path)).save(1, writer())
    grpo = {"algorithm": {"name": "grpo"}, "reward": {"functions": ["exact_match"]}}
    assert 'algorithm.name: must be "sft" to resume' in complaint(Checkpoints(config_for(tmp_path, **grpo)).latest)


def test_what_may_change_may_change(tmp_path: Path) -> None:
    Checkpoints(config_for(tmp_path)).save(1, writer())
    changes = {"algorithm": {"steps": 90}, "policy": {"ranks": 2, "micro_batch_tokens": 64}, "checkpoint": {"every": 5}}
    assert Checkpoints(config_for(tmp_path, **changes)).latest() is not None


def test_a_checkpoint_says_what_its_state_is_divided_by(tmp_path: Path) -> None:
    """However the run that resumes is."""
    Checkpoints(config_for(tmp_path, policy={"zero_stage": 2, "ranks": 2})).save(1, writer())
    found = Checkpoints(config_for(tmp_path, policy={"zero_stage": 3, "ranks": 4})).latest()
    assert found is not None
    assert found.shards == {"policy": Shards(ranks=2, zero_stage=2)}


@pytest.mark.parametrize(("field", "value"), [("ranks", 0), ("ranks", "2"), ("zero_stage", 4), ("zero_stage", None)])
def test_a_manifest_of_impossible_ranks_is_none(field: str, value: object, tmp_path: Path) -> None:
    directory = Checkpoints(config_for(tmp_path)).save(1, writer())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["identity"]["policy"][field] = value
    (directory / "manifest.json").write_text(json.dumps(manifest))
    line = complaint(Checkpoints(config_for(tmp_path)).latest)
    assert f"{directory} has no readable manifest (ValueError)" in line


def test_when_to_save(tmp_path: Path) -> None:
    every = Checkpoints(config_for(tmp_path, checkpoint={"every": 5}))
    assert [step for step in range(1, 12) if every.due(step, False)] == [5, 10]
    assert every.due(3, True)
    assert not Checkpoints(config_for(tmp_path)).due(5, False)


def test_a_driver_ends_when_another_one_has_begun_the_run_anew(tmp_path: Path) -> None:
    """As when a job is deleted on Kubernetes and created again before its old driver has ended."""
    checkpoints = Checkpoints(config_for(tmp_path))
    checkpoints.require_ours()
    checkpoints.prepare(None)
    checkpoints.require_ours()
    program = (
        "import json, sys; from launch.run.checkpoint import Checkpoints; from launch.config import validate\n"
        "Checkpoints(validate(json.load(sys.stdin))).prepare(None)"
    )
    values = config_for(tmp_path).model_dump_json()
    subprocess.run([sys.executable, "-c", program], input=values, text=True, check=True, cwd=ROOT, timeout=60)
    line = complaint(checkpoints.require_ours)
    assert line == f"run.name: another driver has taken over {tmp_path}/first, so this one ends, got first"


def test_all_ranks_must_see_the_drivers_directory(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path))
    checkpoints.prepare(checkpoints.latest())
    checkpoints.require_shared(lambda path: [path.read_text()] * 2)
    for other in (None, "of another driver"):
        line = complaint(lambda other=other: checkpoints.require_shared(lambda path: [path.read_text(), other]))
        assert line.startswith("run.output: must be an absolute path on storage that all nodes share ")


def _exported(directory: Path, seed: int, numbers: int = 64) -> Path:
    """A model's directory as an export of a run would leave it; `seed` decides its numbers, and nothing else."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "qwen2"}')
    tensors = {name: np.random.default_rng(seed).normal(size=numbers) for name in ("a", "b")}
    save_file(tensors, directory / "model.safetensors")
    return directory


def _job(directory: Path, *, model: Path, reward: Path | None = None) -> RunConfig:
    algorithm = {"name": "grpo", "steps": 30} if reward else {"name": "sft", "steps": 30}
    changes: dict[str, Any] = {"algorithm": algorithm, "model": {"path": str(model), "init": None}}
    return config_for(directory, **changes, **({"reward": {"models": [{"path": str(reward)}]}} if reward else {}))


@pytest.mark.parametrize("numbers", [64, 3 << 20])
def test_a_model_exported_anew_under_the_same_path_is_refused(tmp_path: Path, numbers: int) -> None:
    """Small ones are read whole, of large ones a part; a copy, which has other times, is the same model."""
    model, reward = _exported(tmp_path / "sft", 1, numbers), _exported(tmp_path / "rm", 2)
    config = _job(tmp_path, model=model, reward=reward)
    Checkpoints(config).save(3, writer())
    _exported(model, 1, numbers)
    os.utime(model / "model.safetensors", ns=(0, 0))
    assert Checkpoints(config).latest() is not None
    _exported(model, 7, numbers)
    anew = "; to start anew: checkpoint.resume=false, or another run.name than first"
    trained = f"{tmp_path}/first/checkpoints/step-3 was trained with (its files have changed since)"
    same = f"must hold the model that {trained}"
    assert complaint(Checkpoints(config).latest) == f"model.path: {same}, got {model}{anew}"
    _exported(model, 1, numbers)
    _exported(reward, 3)
    assert complaint(Checkpoints(config).latest) == f"reward.models[0].path: {same}, got {reward}{anew}"
    other = _exported(tmp_path / "other-rm", 3)
    assert Checkpoints(_job(tmp_path, model=model, reward=other)).latest() is not None, "which is said"


def test_what_is_exported_while_a_run_goes_on_is_not_what_it_has_read(tmp_path: Path) -> None:
    model = _exported(tmp_path / "sft", 1)
    config = _job(tmp_path, model=model)
    Checkpoints(config).prepare(Checkpoints(config).latest())
    _exported(model, 2)
    Checkpoints(config).save(3, writer())
    assert "its files have changed since" in complaint(Checkpoints(config).latest)
    _exported(model, 1)
    assert Checkpoints(config).latest() is not None


def test_a_branch_of_the_hub_that_has_moved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub/models--ours--model"
    (cached / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        _exported(cached / "snapshots" / commit, 1)
    (cached / "refs/main").write_text("a" * 40)
    config = config_for(tmp_path, model={"path": "ours/model", "init": None})
    Checkpoints(config).save(3, writer())
    assert Checkpoints(config).latest() is not None
    (cached / "refs/main").write_text("b" * 40)
    line = complaint(Checkpoints(config).latest)
    assert f"(commit {'a' * 40}; it is commit {'b' * 40} now), got ours/model; to start anew" in line


def test_a_checkpoint_that_does_not_know_its_models_is_resumed(tmp_path: Path) -> None:
    config = _job(tmp_path, model=_exported(tmp_path / "sft", 1))
    directory = Checkpoints(config).save(3, writer())
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["contents"]
    manifest["data"] = None
    (directory / "manifest.json").write_text(json.dumps(manifest))
    _exported(tmp_path / "sft", 2)
    found = Checkpoints(config).latest()
    assert found is not None and found.data == {}


def test_the_refused_one_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is whole: as where its manifest belongs to somebody else."""
    checkpoints = Checkpoints(config_for(tmp_path, checkpoint={"keep": 2}))
    for step in (1, 2):
        checkpoints.save(step, writer())
    monkeypatch.setattr(checkpoint, "stranger", lambda path: "is somebody else's")
    line = complaint(checkpoints.latest)
    directory = tmp_path / "first/checkpoints"
    told = (
        f"checkpoint.resume: {directory}/step-2/manifest.json is somebody else's; to go on from step-1, which is whole"
    )
    assert line.startswith(f"{told}: echo step-1 > {directory}/latest; to start anew: ")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"metric": "eval/loss", "value": 0.25}, "the best checkpoint so far, with eval/loss 0.25, is gone"),
        ({"metric": "eval/x", "value": 0.25}, None),
        ({"metric": "eval/x", "value": None}, None),
        ({"metric": "eval/loss", "value": None}, None),
        ({}, None),
    ],
)
def test_a_best_one_that_is_gone_is_told_by_its_own_metric(tmp_path: Path, state: Any, told: str | None) -> None:
    measured(tmp_path).save(1, writer(best=state))
    lines = measured(tmp_path).prepare(measured(tmp_path).latest())
    rest = ": of the next ones one that is better is exported, else the last one"
    assert lines == ([] if told is None else [told + rest])


def test_a_pointer_that_was_half_written_goes(tmp_path: Path) -> None:
    checkpoints = measured(tmp_path, keep=2)
    checkpoints.save(1, writer(best=best(1)), best=True)
    for name in ("latest.partial", "best.partial"):
        (tmp_path / "first/checkpoints" / name).write_text("step-")
    checkpoints.prepare(checkpoints.latest())
    assert steps(tmp_path) == ["best", "latest", "step-1"]


def test_a_manifest_has_the_step_the_files_and_their_hashes(tmp_path: Path) -> None:
    """A hash that a rank has taken is not taken again; a file may be empty, and the step 0."""

    def write(directory: Path) -> Written:
        (directory / "empty").touch()
        (directory / "hashed").write_text("x")
        return Written({"kl": {"coef": 0.5}}, [("empty", 0, None), ("hashed", 1, "taken by a rank")])

    checkpoints = Checkpoints(config_for(tmp_path))
    checkpoints.write(0, write)
    text = (checkpoints.keep(0) / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert manifest.keys() == {"step", "identity", "contents", "data", "text_files", "rows", "parts", "files", "sha256"}
    assert (manifest["step"], manifest["files"]) == (0, {"empty": 0, "hashed": 1})
    assert manifest["parts"] == {"kl": {"coef": 0.5}}
    assert manifest["sha256"] == {"empty": hashlib.sha256().hexdigest(), "hashed": "taken by a rank"}
    assert text.startswith('{\n  "step": 0,\n  "identity": {\n'), "for people to read"
    assert steps(tmp_path) == ["latest", "step-0"]


def test_step_0_is_gone_on_from(tmp_path: Path) -> None:
    checkpoints = Checkpoints(config_for(tmp_path))
    checkpoints.save(0, writer())
    found = checkpoints.latest()
    assert found is not None and found.directory.name == "step-0"
    (tmp_path / "first/checkpoints/latest").write_text("x" * 60)
    assert f"must name a checkpoint such as step-20, got {'x' * 40!r}; " in complaint(checkpoints.latest)


@pytest.mark.parametrize(("later", "step"), [(-1, 0), (0, 0), (1, 5)])
def test_a_checkpoint_in_place_that_latest_does_not_name_yet_is_gone_on_from(
    tmp_path: Path, later: int, step: int
) -> None:
    """Unless whoever has written `latest` since then has decided otherwise."""
    checkpoints, directory = Checkpoints(config_for(tmp_path, checkpoint={"keep": 2})), tmp_path / "first/checkpoints"
    for each in (0, 5):
        checkpoints.save(each, writer())
    (directory / "latest.partial").write_text("step-0")
    os.utime(directory / "latest.partial", ns=(10**9, 10**9))
    os.utime(directory / "latest", ns=(10**9 + later, 10**9 + later))
    found = checkpoints.latest()
    assert found is not None and found.step == step


def test_a_best_one_by_another_metric_is_no_longer_pointed_at(tmp_path: Path) -> None:
    measured(tmp_path).save(1, writer(best=best(1)), best=True)
    other = measured(tmp_path, "eval/sequence_probability")
    other.prepare(other.latest())
    assert steps(tmp_path) == ["latest", "step-1"]
