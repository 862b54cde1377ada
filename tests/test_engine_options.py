"""rollout.vllm: arguments that vLLM's engine has, of its types, and none that other settings decide."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.config_rollout import RolloutConfig
from launch.checks.engine_options import DECIDED, _fields, check_engine_options

ROOT = Path(__file__).resolve().parent.parent


def problems(**options: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        check_engine_options(RolloutConfig(vllm=options))
    return caught.value.problems


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 4096, "block_size": None},
        {"cpu_offload_gb": 2, "scheduling_policy": "priority", "kv_cache_dtype": "fp8"},
        {"mamba_backend": "triton", "optimization_level": 2, "lora_dtype": "auto", "max_logprobs": -1},
        {"attention_backend": "FLASH_ATTN", "limit_mm_per_prompt": {"image": 1, "video": {"count": 1}}},
        {"compilation_config": 3},
        {"compilation_config": {"level": 0}, "cudagraph_capture_sizes": [1, 2, 4], "kv_cache_dtype_skip_layers": ["0"]},
    ],
)
def test_arguments_of_the_engine_are_taken(options: dict[str, Any]) -> None:
    assert check_engine_options(RolloutConfig(vllm=options)) == []


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "enable_prefix_cachin",
            True,
            "vLLM's engine has no such argument (did you mean enable_prefix_caching?), got True",
        ),
        ("zzz", 1, "vLLM's engine has no such argument: EngineArgs in its documentation lists them, got 1"),
        ("enable_prefix_caching", "perhaps", "must be true, false or null, got 'perhaps'"),
        ("block_size", "many", "must be a whole number or null, got 'many'"),
        ("max_num_batched_tokens", True, "must be a whole number or null, got True"),
        (
            "cudagraph_capture_sizes",
            [1, "two"],
            "must be a list of items that are each a whole number or null, got [1, 'two']",
        ),
        ("compilation_config", "3", "must be a mapping, got '3'"),
        ("compilation_config", True, "must be a mapping, got True"),
        ("attention_config", "fast", "must be a mapping, got 'fast'"),
        ("kv_transfer_config", [1], "must be a mapping or null, got [1]"),
        ("optimization_level", "high", "must be 0, 1, 2 or 3, got 'high'"),
        ("optimization_level", 9, "must be 0, 1, 2 or 3, got 9"),
        ("mamba_backend", 5, "must be TRITON, FLASHINFER or CPU, got 5"),
        ("lora_dtype", 5, "must be text or null, got 5"),
        ("cpu_offload_gb", -1, "must be at least 0, got -1"),
        ("max_logprobs", -2, "must be at least -1, got -2"),
        (
            "default_mm_loras",
            {"image": 1},
            "must be a mapping to items that are each text or null, got {'image': 1}",
        ),
        ("scheduling_policy", "best", "must be fcfs or priority, got 'best'"),
        ("dtype", "half", "must be left out, as model.dtype decides it, got 'half'"),
        ("max_num_seqs", 8, "must be left out, as rollout.max_concurrent decides it, got 8"),
        ("data_parallel_rank", 1, "must be left out, as rollout.engines says how many engines there are, got 1"),
        (
            "hf_token",
            "hf_abc",
            "must be left out, as it must come from the environment (HF_TOKEN): configurations are kept and shown, "
            "got a value (not shown)",
        ),
    ],
)
def test_what_the_engine_does_not_take_is_one_line(name: str, value: Any, line: str) -> None:
    assert problems(**{name: value}) == (f"rollout.vllm.{name}: {line}",)


def test_every_mistake_is_told_at_once_and_quickly() -> None:
    started = time.process_time()
    lines = problems(seed=1, blocksize=16, enable_prefix_caching="no")
    assert [line.partition(":")[0] for line in lines] == [
        "rollout.vllm.seed", "rollout.vllm.blocksize", "rollout.vllm.enable_prefix_caching",
    ]  # fmt: skip
    assert time.process_time() - started < 1  # 0.1 s
    program = (
        "import sys; from tests.test_engine_options import problems; problems(seed=1); sys.exit('vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_fields_are_those_of_the_class() -> None:
    """What the source is read for is there, and each argument that we decide still has this name."""
    from importlib.util import find_spec

    spec = find_spec("vllm")
    assert spec and spec.submodule_search_locations
    fields = _fields(Path(spec.submodule_search_locations[0]) / "engine/arg_utils.py")
    assert len(fields) > 150
    assert DECIDED.keys() <= fields.keys()


def test_without_vllm_it_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_engine_options(RolloutConfig()) == []
    [line] = check_engine_options(RolloutConfig(vllm={"block_size": 16}))
    assert line == "rollout.vllm: vllm is not installed here, so block_size is not checked"
    assert problems(seed=1) == ("rollout.vllm.seed: must be left out, as run.seed decides it, got 1",)
