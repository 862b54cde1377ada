"""Every configuration that we ship is valid and passes all checks that need no cluster, as `check` would say."""

import json
import os
from pathlib import Path

import pytest

from actors.config import ModelConfig
from actors.models.skeleton import write_skeleton
from launch.checks.check import preflight
from launch.config import RunConfig, load
from launch.kinds.table import job_kind
from launch.models.tensors import expected_tensors
from launch.sizes import machine
from tests.fake_models import write_weights

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    """There is a configuration for each algorithm, and with LoRA for each but those that score."""
    configs = [load(str(path), []) for path in CONFIGS]
    assert {config.algorithm.name for config in configs} == {
        "sft",
        "reward",
        "dpo",
        "ppo",
        "grpo",
        "embedding",
        "reranker",
    }
    with_lora = {config.algorithm.name for config in configs if config.model.lora}
    assert with_lora == {"sft", "dpo", "ppo", "grpo", "embedding"}


def test_a_run_is_named_as_its_file() -> None:
    """Two jobs do not write into the same directory."""
    assert {path.stem: load(str(path), []).run.name for path in CONFIGS} == {path.stem: path.stem for path in CONFIGS}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like the repository's root, with its shared data beside it, in which runs may write."""
    root = tmp_path / "project"
    root.mkdir()
    for item in ("configs", "examples", "benchmarks"):
        if (ROOT / item).exists():
            (root / item).symlink_to(ROOT / item)
    if (ROOT.parent / "shared").exists():
        (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # ids of the hub are not looked up, but have to be taken for such
    return root


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_passes_check(path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads, and has a model, data, rewards and room on a machine with the CPUs and GPUs that it names; a start from
    another config's export fits that config."""
    config = load(str(path), [])
    monkeypatch.setattr(machine, "machine_cpus", lambda: config.cluster.cpus or 2)
    monkeypatch.setattr(machine, "machine_gpus", lambda: config.cluster.gpus or 0)
    given = [value if isinstance(value, dict) else {"": value} for value in (config.data.train, config.data.eval)]
    for file in (file for sources in given for file in sources.values()):
        if file and file.startswith("..") and not (project / file).exists():
            pytest.skip(f"{file} is not there")
    _earlier_stages(config, project)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    expected = ["is read from the hub"] + ["holds rows that are trained on"] * (path.stem == "own-task")
    assert [line for line in preflight(config) if not any(words in line for words in expected)] == []


def _earlier_stages(config: RunConfig, project: Path) -> None:
    """Write the exports that a config starts from or is scored by, of zeros, as the configs that make them."""
    for source in (config.data.train, config.data.eval):
        if isinstance(source, str) and source.startswith("outputs/"):  # what `tandem mine --rank` leaves there
            (project / "outputs").mkdir(exist_ok=True)
            (project / source).write_text('{"query": "a", "positive": ["b"], "documents": ["c", "b"]}\n')
    for path in (config.model.path, *(model.path for model in config.reward.models)):
        if path is not None and path.startswith("outputs/") and not (project / path).exists():
            _write_export(path, project)


def _write_export(path: str, project: Path) -> None:
    makers = [load(str(file), []) for file in CONFIGS]
    # make demo-rlhf adds the seed to the names of its runs.
    made = os.path.normpath(path).replace("-0/export", "/export")
    maker = next(item for item in makers if str(item.directory / "export") == made)
    _earlier_stages(maker, project)
    start = maker
    while start.model.init is None:
        start = next(item for item in makers if str(item.directory / "export") == start.model.path)
    write_skeleton(ModelConfig(init=start.model.init), project / path)
    values = json.loads((project / path / "config.json").read_text())
    if maker.algorithm.name == "reward":
        values["architectures"] = ["Qwen2ForSequenceClassification"]
        (project / path / "config.json").write_text(json.dumps(values))
    weights = expected_tensors(values, job_kind(maker).role)
    assert weights is not None
    if maker.algorithm.name == "reward":
        weights["score.weight"] = (1, values["hidden_size"])
    write_weights(project / path, weights)
