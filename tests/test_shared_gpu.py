"""Policy and engine on one GPU: what is decided before a GPU is touched, tried without one."""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from actors.config import ModelConfig, UserError
from actors.models.family import Family
from actors.models.load import PACKED_ATTENTION, _attention
from launch.checks.engine_options import sampling_warnings
from launch.config import RunConfig, validate
from launch.kinds.rl import RLKind
from launch.kinds.table import job_kind
from launch.run.build_rl import build_rl
from launch.run.roster import Roster

ROWS = '{"prompt": "ab", "answer": "b"}\n'


def job(tmp_path: Path, **sections: Any) -> RunConfig:
    """GRPO of a new model on one GPU."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    values: dict[str, Any] = {
        "algorithm": {"name": "grpo", "steps": 1, "prompts_per_step": 1, "kl_coef": 0.1},
        "model": {"init": {"hidden_size": 32, "layers": 1, "heads": 2}},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "reward": {"functions": ["exact_match"]},
        "policy": {"gpus_per_rank": 1},
        "reference": {"gpus_per_rank": 1},
        "rollout": {"gpus_per_engine": 1, "max_prompt_tokens": 8, "max_response_tokens": 8},
        "cluster": {"placement": "shared"},
        "run": {"output": str(tmp_path)},
    }
    return validate(values | {name: values.get(name, {}) | section for name, section in sections.items()})


class _Stop(Exception):
    pass


class RecordingGroup:
    """Stands for an actor group: notes what is asked of it, and has one rank."""

    calls: list[str]
    spawned: dict[str, tuple[Any, ...]]

    def __init__(self, name: str, *arguments: Any, **options: Any) -> None:
        self.name = name
        self.handles = [None]
        self.version = 0

    def __len__(self) -> int:
        return 1

    @property
    def generations(self) -> list[int]:
        return [0]

    def spawn(self, *arguments: Any, **_: object) -> None:
        self.spawned[self.name] = arguments

    def submit(self, rank: int, method: Callable[..., Any], *arguments: Any) -> str:
        if method.__name__ == "build":
            self.calls.append(f"{self.name} loads")
        return method.__name__

    def gather(self, references: list[str], what: str, **options: Any) -> list[Any]:
        self.calls.append(f"{self.name} {what}")
        return [("127.0.0.1", 1)]

    def call(self, method: Callable[..., Any], *arguments: Any) -> None:
        if method.__name__ == "connect":
            raise _Stop

    def notice(self, references: list[str], what: str) -> None:
        pass


def started(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a run waits for and loads until its engines are connected, in order."""
    calls: list[str] = []
    monkeypatch.setattr(RecordingGroup, "calls", calls, raising=False)
    monkeypatch.setattr(RecordingGroup, "spawned", {}, raising=False)
    monkeypatch.setattr("launch.run.roster.ActorGroup", RecordingGroup)
    monkeypatch.setattr("launch.run.build_rl._reward_pool", lambda config, placement: None)
    placement: Any = SimpleNamespace(nodes=set(), slots=defaultdict(list))
    reporter: Any = SimpleNamespace(phase=_nothing, note=_nothing, progress=_nothing)
    kind = job_kind(config)
    assert isinstance(kind, RLKind)
    with pytest.raises(_Stop):
        build_rl(kind, placement, reporter, Roster(""))
    return [call for call in calls if not call.endswith(" address")]


def _nothing(*arguments: Any, **options: Any) -> None:
    pass


def test_an_engine_has_its_memory_before_another_process_of_its_gpu_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM measures what is free while it starts; where GPUs are not shared, all start beside each other."""
    assert started(job(tmp_path), monkeypatch)[:2] == ["rollout ready", "policy loads"]
    apart = started(job(tmp_path, cluster={"placement": "split"}), monkeypatch)
    assert apart.index("policy loads") < apart.index("reference loads") < apart.index("rollout ready")


@pytest.mark.parametrize(
    ("placement", "given", "share"),
    [("shared", {}, 0.4), ("split", {}, 0.85), ("shared", {"gpu_memory_utilization": 0.7}, 0.7)],
)
def test_an_engine_that_shares_its_gpu_leaves_most_of_it(
    placement: str, given: dict[str, Any], share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(tmp_path, cluster={"placement": placement})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update=given)})
    started(config, monkeypatch)
    assert RecordingGroup.spawned["rollout"][1].gpu_memory_utilization == share


@pytest.mark.parametrize("distribution", ["flash-attn", "flash-attn-4"])
def test_flash_attention_is_the_package_of_this_name(
    distribution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.19 asks for the distribution flash-attn; FlashAttention 4 has a module of the same name."""
    from transformers.utils import import_utils

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(import_utils, "is_torch_cuda_available", lambda: True)
    module = ModuleType("flash_attn")
    module.__spec__ = SimpleNamespace(name="flash_attn", loader=None)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setitem(import_utils.PACKAGE_DISTRIBUTION_MAPPING, "flash_attn", [distribution])  # type: ignore[arg-type]
    monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, **__: (True, "2.8.0"))
    import_utils.is_flash_attn_2_available.cache_clear()
    try:
        chosen = _attention(ModelConfig(path="m", dtype="bf16"), Family("packed"))
        assert chosen == ("flash_attention_2" if distribution == "flash-attn" else PACKED_ATTENTION)
        if distribution != "flash-attn":
            with pytest.raises(UserError, match="flash_attention_2 needs a GPU and the flash-attn package"):
                _attention(ModelConfig(path="m", dtype="bf16", attention="flash_attention_2"), Family("packed"))
    finally:
        import_utils.is_flash_attn_2_available.cache_clear()


def test_float32_on_a_gpu_is_said(tmp_path: Path) -> None:
    (line,) = sampling_warnings(job(tmp_path))
    assert line.startswith("model.dtype fp32: on a GPU there is no flash attention in it")
    assert sampling_warnings(job(tmp_path, model={"dtype": "bf16"}, policy={"zero_stage": 1})) == []
    on_cpu = job(tmp_path, rollout={"gpus_per_engine": 0}, policy={"gpus_per_rank": 0}, reference={"gpus_per_rank": 0})
    assert sampling_warnings(on_cpu) == []
