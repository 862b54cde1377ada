"""What `check` says of rotary positions, and where vLLM would take others than transformers."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.check import examine
from launch.checks.rope import check_rope, ropes_of
from launch.config import validate
from launch.kinds.table import job_kind
from launch.models.values import config_values
from launch.models.vllm_source import is_served_natively
from tests.fake_models import fake_model

LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LIMIT = "rollout.max_prompt_tokens + rollout.max_response_tokens: must not exceed"


def job(name: str, tokens: int, **more: Any) -> Any:
    """A kind of job whose sequences have at most so many tokens."""
    values: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "rows.jsonl"}}
    if name == "grpo":
        values |= {"algorithm": {"name": name, "steps": 2}, "reward": {"functions": ["exact_match"]}}
        values["rollout"] = {"max_prompt_tokens": 4, "max_response_tokens": tokens - 4} | more
    elif name == "embedding":
        values["algorithm"] = {"name": name, "steps": 2} | ({"max_tokens": tokens} if tokens else {})
    else:
        values["algorithm"] = {"name": name, "steps": 2, "samples_per_update": 2}
        values["data"] |= {"max_length": tokens}
    return job_kind(validate(values))


def told(rope: dict[str, Any], kind: str = "llama", name: str = "grpo", tokens: int = 40, **more: Any) -> list[str]:
    served = {"phi3": "Phi3ForCausalLM", "olmo2": "Olmo2ForCausalLM"}.get(kind, "LlamaForCausalLM")
    values = {"model_type": kind, "architectures": [served], "max_position_embeddings": 64, "rope_parameters": rope}
    return check_rope(values, job(name, tokens, **more))


def problem(rope: dict[str, Any], kind: str = "llama", **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        told(rope, kind, **more)
    [line] = caught.value.problems
    return line


def test_what_lengths_decide_is_told() -> None:
    longrope = LONG | {"original_max_position_embeddings": 16}
    name = "rollout.max_prompt_tokens + rollout.max_response_tokens"
    assert told(longrope, tokens=17) == [f"model: longrope with the long factors, as {name} (17) exceeds 16"]
    assert told(longrope, tokens=16) == [f"model: longrope with the short factors, as {name} (16) does not exceed 16"]
    more = "model: longrope with the long factors for what has more than 16 tokens"
    assert told(longrope, name="sft", tokens=17) == [more]
    assert told(longrope, name="sft", tokens=16) == []
    assert told({"sliding_attention": {"rope_type": "default"}, "full_attention": longrope}, tokens=17)
    assert told(longrope, name="embedding", tokens=16) == []
    rule = "algorithm.max_tokens: must not exceed the model's original length (16), beyond which a text's longrope"
    for tokens, got in ((17, "got 17"), (0, "got no limit")):
        line = problem(longrope, name="embedding", tokens=tokens)
        assert line == f"{rule} positions would depend on its neighbours, {got}"


def test_the_original_length_is_found_where_transformers_looks() -> None:
    values = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope"}}
    assert [rope["rope_type"] for rope in ropes_of(values)] == ["longrope"]
    # Beside the rotary positions it goes before the one in them.
    values |= {"original_max_position_embeddings": 30, "max_position_embeddings": 64}
    values["rope_scaling"] = LONG | {"original_max_position_embeddings": 16}
    assert "does not exceed 30" in check_rope(values, job("grpo", 20))[0]
    del values["original_max_position_embeddings"]
    assert "exceeds 16" in check_rope(values, job("grpo", 20))[0]


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "linear": (
        "llama",
        {"rope_type": "linear", "factor": 4},
        "give factor with a decimal point (4.0), as vLLM takes no whole number, got 4",
    ),
    "proportional": (
        "gemma4_text",
        {"rope_type": "proportional", "factor": 8.0},
        "leave factor out, which vLLM does not read, got 8.0",
    ),
    "alpha": (
        "llama",
        {"rope_type": "dynamic", "factor": 2.0, "alpha": 9.0},
        "leave alpha out, which vLLM reads, and transformers does not, got 9.0",
    ),
    "beta": ("llama", YARN | {"beta_fast": None}, "give beta_fast above 0, without which vLLM computes none, got null"),
    "factor": ("llama", YARN | {"factor": None}, "give factor above 0, without which vLLM computes none, got null"),
    "deepseek type": (
        "deepseek_v3",
        {"rope_type": "linear", "factor": 2.0},
        "be of type default or yarn, as vLLM takes every type of deepseek_v3 for yarn, got linear",
    ),
    "deepseek scale": (
        "deepseek_v3",
        YARN | {"mscale": 0.7},
        "give mscale and mscale_all_dim, by which vLLM scales deepseek_v3, and no more, got null",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_positions_of_which_vllm_reads_less_are_refused(name: str) -> None:
    kind, rope, rule = WRONG[name]
    # Engines on CPU run the code of transformers for DeepSeek.
    on_gpu = {"gpus_per_engine": 1} if kind == "deepseek_v3" else {}
    assert problem(rope, kind, **on_gpu) == f"model.path: rope_parameters in config.json must {rule}"
    assert told(rope, kind, name="sft") == []


def test_positions_that_an_engine_has_not_are_refused() -> None:
    end = "which is factor x original_max_position_embeddings of a yarn model, got"
    assert told(YARN | {"factor": 2.5}, tokens=40) == []
    assert problem(YARN | {"factor": 2.5}, tokens=41) == f"{LIMIT} 40, {end} 41"


def test_families_that_run_the_code_of_transformers_have_its_positions() -> None:
    assert told(YARN | {"llama_4_scaling_beta": 0.1}, "ministral3", tokens=17) == []
    assert (
        told({"rope_type": "default"}, "gpt_oss") == told({"rope_type": "linear", "factor": 2.0}, "deepseek_v3") == []
    )


def test_positions_that_would_depend_on_neighbours_in_the_engine_are_refused() -> None:
    """Of families that vLLM runs with transformers' code, or is asked to."""
    longrope = LONG | {"original_max_position_embeddings": 16}
    line = f"{LIMIT} 16, of a longrope model that vLLM has no class for, got 17"
    assert [is_served_natively(name) for name in ("Phi3ForCausalLM", "Olmo2ForCausalLM", "")] == [True, False, None]
    assert problem(longrope, "olmo2", tokens=17) == line
    assert problem(longrope, "phi3", tokens=17, vllm={"model_impl": "transformers"}) == line
    assert told(longrope, "olmo2", tokens=16)


@pytest.mark.parametrize(
    ("model_type", "given", "rule"),
    [
        ("olmo2", {"type": "mrope"}, "must be one of transformers' types of rotary positions"),
        ("phi3", {"type": "su"}, "must be one of transformers' types of rotary positions, got su"),
        ("minicpm3", LONG, "must say factor for longrope, got nothing"),
        ("olmo2", {"rope_type": "yarn"}, "must say factor for yarn, got nothing"),
        ("qwen2_vl_text", {"type": "mrope"}, None),
        ("phi3", LONG, None),
        ("minicpm3", LONG | {"factor": 1.0}, None),
    ],
)
def test_types_are_those_of_transformers_in_every_family(
    model_type: str, given: dict[str, Any], rule: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "rope_scaling": given}))
    with nullcontext() if rule is None else pytest.raises(UserError, match=re.escape(rule)):
        config_values(tmp_path, "model.path")


def test_a_check_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps({"prompt": "ab", "completion": "ba"}) + "\n" * 4)
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 16}
    fake_model(Path("m"), rope_scaling={"rope_type": "longrope", **factors})
    config = job("sft", 32).config
    assert "model: longrope with the long factors for what has more than 16 tokens" in examine(config).notes
