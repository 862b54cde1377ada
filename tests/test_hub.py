"""Uploads to a fake hub on loopback: what is sent, what is checked before, and failures that lose nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launch.exports.hub
import launch.run.run
from launch.config import validate
from launch.exports.hub import hub_id_problem, push_export
from tests.fake_hub import FakeHub, fake_hub
from tests.fake_models import fake_model

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A run with a model."""
    export = tmp_path / "outputs/first/export"
    (export / "adapter").mkdir(parents=True)
    fake_model(export)
    (export / "adapter/adapter_config.json").write_text("{}")
    return tmp_path


def tandem(project: Path, hub: FakeHub | None, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    known = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN} if hub else {}
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_TOKEN_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    home = {"HOME": str(project), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=project,
        env=kept | home | known | changes,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_finished_run_is_uploaded(project: Path, hub: FakeHub) -> None:
    done = tandem(project, hub, "export", "outputs/first", "--push", "ours/model", "--private")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["outputs/first/export", f"{hub.url}/ours/model"]
    assert hub.made[0]["organization"] == "ours"
    assert hub.made[0]["visibility"] == "private"
    assert hub.files["model.safetensors"] == (project / "outputs/first/export/model.safetensors").read_bytes()
    assert {"config.json", "model.safetensors", "adapter/adapter_config.json"} <= hub.files.keys()
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_nothing_private_goes_to_a_repository_that_is_public_already(project: Path, hub: FakeHub) -> None:
    hub.private = False
    done = tandem(project, hub, "export", "outputs/first", "--push", "ours/model", "--private")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line == (
        "error: --push: the model was not uploaded (the repository is there already, and it is public: make it "
        "private, or take another name), got ours/model"
    )
    assert hub.files == {}
    done = tandem(project, hub, "export", "outputs/first", "--push", "ours/model")
    assert (done.returncode, "config.json" in hub.files) == (0, True), "one that may be public"


def test_a_refusal_is_one_line_without_the_token(project: Path, hub: FakeHub) -> None:
    hub.refuses = True
    done = tandem(project, hub, "export", "outputs/first", "--push", "ours/model")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --push: the model was not uploaded (")
    assert "this token may not write" in line
    assert line.endswith("got ours/model")
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "changes", "line"),
    [
        (["--push", "ours/model"], {}, "--push: needs a token of the hub (HF_TOKEN, or `hf auth login`), got "
         "ours/model without one"),
        (["--push", "ours/model"], {"HF_HUB_OFFLINE": "1"}, "--push: needs the hub, which HF_HUB_OFFLINE forbids, got "
         "ours/model"),
        (["--push", "model"], {}, "--push: must be OWNER/NAME, of letters, digits, single - and ., and _, got model"),
        (["--private"], {}, "--private: needs --push, got none"),
    ],
)  # fmt: skip
def test_what_cannot_be_uploaded_is_told_before(
    project: Path, arguments: list[str], changes: dict[str, str], line: str
) -> None:
    done = tandem(project, None, "export", "outputs/first", *arguments, **changes)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_ids() -> None:
    for name in ("ours/model", "our-team/Model_1.5-instruct", "a/b"):
        assert hub_id_problem(name) is None
    for name in ("model", "a/b/c", "a/", "/b", "a b/c", "a/b--c", "a/..", "a/b.git", "-a/b", "a/b.", "a/" + "b" * 95):
        assert hub_id_problem(name)


def config_for(directory: Path, **run: Any) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {"hidden_size": 32, "heads": 2, "layers": 1}},
            "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 10}},
            "cluster": {"cpus": 4},
            "tracking": {"wandb": False},
            "run": {"output": str(directory), "name": "first", **run},
        }
    )


def test_a_run_needs_a_token_before_it_starts(project: Path) -> None:
    (project / "job.json").write_text(config_for(project / "new", hub_model_id="ours/model").model_dump_json())
    done = tandem(project, None, "run", "job.json")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert line.startswith("error: run.hub_model_id: needs a token of the hub")
    assert not (project / "new").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_ends_well_whatever_becomes_of_the_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    sent = []

    def train(config: Any, reporter: Any, display: Any, faults: Any) -> None:
        (config.directory / "export").mkdir()

    def push(directory: Path, name: str, *, private: bool) -> str:
        sent.append((directory, name, private))
        if fails:
            raise ConnectionError("no route")
        return "https://hub/ours/model"

    monkeypatch.setattr(launch.run.run, "_learn_and_export", train)
    monkeypatch.setattr(launch.exports.hub, "push", push)
    assert launch.run.run.run(config_for(tmp_path, hub_model_id="ours/model", hub_private=True)) == 0
    assert sent == [(tmp_path / "first/export", "ours/model", True)]
    told = capsys.readouterr()
    again = f"tandem export {tmp_path}/first --push ours/model --private"
    if fails:
        expected = f"run.hub_model_id: the model was not uploaded (no route); try again with `{again}`"
        assert f"warning: {expected}\n" in told.err
    else:
        assert "hub:     https://hub/ours/model\n" in told.out


def test_an_interrupted_upload_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def push(*arguments: Any, **options: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.exports.hub, "push", push)
    warning = push_export(tmp_path, "ours/model", private=False)
    assert warning
    assert warning.startswith("run.hub_model_id: the model was not uploaded (interrupted); try again with `tandem exp")
