"""Every configuration that we ship is valid and passes all checks that need no cluster, as `check` would say."""

import os
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from actors.skeleton import write_skeleton
from launch.check import preflight
from launch.config import RunConfig, load

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    """There is a configuration for each algorithm."""
    names = {load(str(path), []).algorithm.name for path in CONFIGS}
    assert names == {"sft", "grpo"}


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
    """Loads, and has a model, data, rewards and room; a start from another config's export fits that config."""
    config = load(str(path), [])
    for file in (config.data.train, config.data.eval):
        if file and file.startswith("..") and not (project / file).exists():
            pytest.skip(f"{file} is not there")
    _earlier_stages(config, project)
    if config.policy.gpus_per_rank or config.rollout.gpus_per_engine:
        # A cluster's size is not this machine's.
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert [line for line in preflight(config) if not line.startswith("model.path")] == []


def _earlier_stages(config: RunConfig, project: Path) -> None:
    """Write the export that `model.path` names, empty of weights, as the config that makes it would."""
    model = config.model.path
    if model is None or not model.startswith("outputs/"):
        return
    makers = [load(str(path), []) for path in CONFIGS]
    maker = next(item for item in makers if str(item.directory / "export") == os.path.normpath(model))
    _earlier_stages(maker, project)
    if maker.model.init is None:
        assert maker.model.path is not None
        (project / model).parent.mkdir(parents=True)
        (project / model).symlink_to(project / maker.model.path)
        return
    write_skeleton(maker.model, project / model)
    save_file({}, project / model / "model.safetensors")
