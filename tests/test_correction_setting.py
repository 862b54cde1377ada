"""`algorithm.importance_correction`: what auto is, how it is overridden, and what `tandem check` says of it."""

import json
from typing import Any

import pytest

from algorithms.config_rl import GRPOConfig, ImportanceCorrection, PPOConfig
from launch.checks.check import examine
from launch.checks.report import as_object, print_tables
from launch.config import RunConfig, validate
from launch.settings.file import apply_overrides

JOB: dict[str, Any] = {
    "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2},
    "model": {"init": {"hidden_size": 64, "layers": 1, "heads": 2, "alphabet": "abc", "max_positions": 64}},
    "data": {"train": "rows.jsonl"},
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 16},
}


@pytest.mark.parametrize("stale", range(9))
def test_auto_is_a_weight_per_token_where_samples_may_be_stale(stale: int) -> None:
    for config in (GRPOConfig(name="grpo", max_staleness=stale), PPOConfig(name="ppo", max_staleness=stale)):
        assert config.importance_correction == "auto"
        assert config.correction == (ImportanceCorrection(level="token", mode="truncate", cap=2.0) if stale else None)


@pytest.mark.parametrize("stale", [0, 3])
def test_what_is_asked_for_is_done_at_any_staleness(stale: int) -> None:
    asked = ImportanceCorrection(level="sequence", cap=1.5)
    assert GRPOConfig(name="grpo", max_staleness=stale, importance_correction=asked).correction == asked
    assert GRPOConfig(name="grpo", max_staleness=stale, importance_correction=None).correction is None


@pytest.mark.parametrize("given", ["left out", "auto", None, {"level": "sequence"}])
def test_one_field_of_it_can_be_overridden(given: Any) -> None:
    """Also in the config.json of a run, which gives every field: there auto, where nothing was asked for."""
    section = {} if given == "left out" else {"importance_correction": given}
    resolved = validate(JOB | {"algorithm": JOB["algorithm"] | section}).model_dump_json()
    config = validate(apply_overrides(json.loads(resolved), ["algorithm.importance_correction.cap=3"]))
    level = "sequence" if isinstance(given, dict) else "token"
    assert config.algorithm.importance_correction == ImportanceCorrection(level=level, cap=3)  # type: ignore[union-attr]


def checked(tmp_path: Any, **settings: Any) -> RunConfig:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "ab", "answer": "a"}\n' * 8)
    data, run = {"train": str(rows)}, {"output": str(tmp_path / "outputs")}
    return validate(JOB | {"data": data, "run": run, "algorithm": JOB["algorithm"] | settings})


LINES: dict[str, tuple[dict[str, Any], str]] = {
    "auto": (
        {"max_staleness": 1},
        "samples of weights up to 1 version older get importance weights by token, cut to 2 (auto)",
    ),
    "asked for": (
        {"max_staleness": 4, "samples_per_update": 4, "importance_correction": {"level": "sequence", "mode": "mask"}},
        "samples of weights up to 4 versions older get importance weights by sequence, left out above 2; a pass before "
        "the updates reads old logprobs",
    ),
}
OFF = (
    "algorithm.importance_correction null: nothing corrects for samples of weights up to 4 versions older; "
    "policy/importance_weight_* tell how far they are from the policy"
)


@pytest.mark.parametrize("name", LINES)
def test_check_says_what_becomes_of_stale_samples(name: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings, line = LINES[name]
    found = examine(checked(tmp_path, **settings))
    print_tables(found)
    shown = capsys.readouterr().out
    assert f"\n{line}\n" in shown and OFF not in shown
    told: Any = as_object(found)
    assert line in told["data"] and told["config"]["algorithm"]["max_staleness"] == settings["max_staleness"]


def test_check_warns_where_nothing_corrects(tmp_path: Any) -> None:
    found = examine(checked(tmp_path, max_staleness=4, importance_correction=None))
    assert OFF in found.warnings and not any("older" in note for note in found.notes)


def test_check_says_nothing_of_it_on_policy(tmp_path: Any) -> None:
    for settings in ({}, {"importance_correction": None}, {"importance_correction": {}}):
        found = examine(checked(tmp_path, **settings))
        assert not any("older" in line for line in found.notes + found.warnings)
