"""Where a checkpoint's model is written: on this machine with what it has, or as the run was on a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import export_step
from launch.config import validate
from launch.export_step import _on_this_machine, kept_steps


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
