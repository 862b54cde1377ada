"""How a run begins and fails: an old run's files go, mistakes are one line, a death names the right log."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from actors.config import UserError
from actors.group import GroupError
from launch.config import RunConfig, validate
from launch.run import _explain, _prepare


def config_for(output: Path, resume: bool = True) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "checkpoint": {"resume": resume},
            "run": {"output": str(output), "name": "first"},
        }
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    for name in ("policy-0", "policy-3", "rollout-1"):
        (tmp_path / f"logs/{name}.log").write_text("what happened")
    return tmp_path / "logs"


def test_a_new_run_starts_without_the_model_of_an_earlier_one(tmp_path: Path) -> None:
    export = tmp_path / "first/export"
    export.mkdir(parents=True)
    (tmp_path / "first/curves.png").write_bytes(b"")
    assert _prepare(config_for(tmp_path, resume=False)) is None
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "logs"]


def test_an_output_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        _prepare(config_for(tmp_path / "file"))
    (line,) = caught.value.problems
    assert line.startswith("run.output: must be a directory that can be written (Not a directory: ")
    assert line.endswith(f"got {tmp_path}/file")


@pytest.mark.parametrize(
    ("message", "log"),
    [
        ("policy[3].update: RuntimeError: out of memory", "policy-3"),
        ("rollout[1].generated: the process died (killed)", "rollout-1"),
        ("policy.update: no answer from rank(s) [3, 5] within 600 s", "policy-3"),
        ("policy[7].update: on another node", "driver"),
        ("3 of 8 rollouts of a step failed in the engines", "driver"),
    ],
)
def test_a_failure_names_the_log_of_its_process(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str], message: str, log: str
) -> None:
    _explain(GroupError(message), tmp_path)
    assert capsys.readouterr().err == f"run failed: {message}\nfull log: {logs}/{log}.log\n"
    assert message in (logs / "driver.log").read_text()


def test_a_users_mistake_found_in_an_actor_is_reported_as_one(tmp_path: Path, logs: Path) -> None:
    cause = UserError("model.path: must hold a tokenizer, got x", "model.dtype: must be bf16, got fp32")
    error = GroupError("policy[0].build: UserError: model.path: must hold a tokenizer, got x")
    error.__cause__ = RayTaskError("build", "traceback", cause)
    with pytest.raises(UserError) as caught:
        _explain(error, tmp_path)
    assert caught.value.problems == cause.problems
