"""Where a checkpoint's model is written: on this machine with what it has, or as the run was on a cluster."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.contents import model_contents
from launch.config import validate
from launch.verbs import export_step
from launch.verbs.export_step import _on_this_machine, _require_base, kept_steps
from tests.fake_models import fake_model


def config_for(**policy: Any) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"path": "model", "dtype": "bf16", "attention": "flash_attention_2"},
            "data": {"train": "rows.jsonl"},
            "policy": {"ranks": 8, "gpus_per_rank": 1, "zero_stage": 3, "ranks_per_node": 4} | policy,
            "cluster": {"gpus": 2},
        }
    )


def test_a_machine_without_room_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = _on_this_machine(config_for(node_labels={"zone": "a"}, resources={"fast": 1}))
    assert (found.policy.gpus_per_rank, found.model.attention) == (0, "auto")
    assert (found.policy.ranks_per_node, found.policy.node_labels, found.policy.resources) == (None, {}, {})
    assert (found.policy.ranks, found.policy.zero_stage) == (8, 3), "the checkpoint is divided by them"
    assert found.policy.ranks * found.policy.cpus_per_rank < 1


def test_gpus_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_step, "this_machine", lambda: SimpleNamespace(gpus=2))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = _on_this_machine(config_for(ranks=2, ranks_per_node=None))
    assert (found.policy.gpus_per_rank, found.model.attention) == (1, "flash_attention_2")


def test_a_cluster_that_is_joined_is_used_as_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert _on_this_machine(config_for()) == config_for()


def test_only_complete_checkpoints_are_kept_ones(tmp_path: Path) -> None:
    for name in ("step-20", "step-100", "step-3", "step-40.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints/step-3/manifest.json").unlink()
    assert kept_steps(tmp_path) == [20, 100]
    assert kept_steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("kind", ["lora", "freeze", "all of it", "older"])
def test_a_base_that_has_changed_since_gives_no_model(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint holds what is trained: with adapters, another base would give a model that nobody has trained."""
    monkeypatch.chdir(tmp_path)
    fake_model(tmp_path / "model")
    model = {"path": "model"} | {"lora": {"lora": {"rank": 2}}, "freeze": {"freeze": ["model.norm*"]}}.get(kind, {})
    config = validate({"algorithm": {"name": "sft", "steps": 3}, "model": model, "data": {"train": "rows.jsonl"}})
    checkpoint = tmp_path / "outputs/run/checkpoints/step-2"
    checkpoint.mkdir(parents=True)
    contents = {} if kind == "older" else {"contents": model_contents(config)}
    manifest = {"step": 2, "identity": {}, "state": {"step": 2}, "files": {}} | contents
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    _require_base(config, checkpoint, 2)
    fake_model(tmp_path / "model", hidden_size=128)
    with pytest.raises(UserError) if kind in ("lora", "freeze") else nullcontext() as caught:
        _require_base(config, checkpoint, 2)
    if caught:
        line = "--step: model.path: must hold the model that "
        assert str(caught.value).startswith(line) and str(caught.value).endswith(", got model, got 2")
