"""What a configuration asks of a mixture of experts, refused before anything starts: one line with field and value."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.check import examine
from launch.config import validate
from launch.models.transformers_source import balances_experts, fuses_experts
from tests.mixtures import BALANCED, MIXTURES, config_of, saved_mixture

JOBS: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": {"name": "sft", "steps": 5}},
    "grpo": {
        "algorithm": {"name": "grpo"},
        "reward": {"functions": ["exact_match"]},
        "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    },
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps({"prompt": "ab", "completion": "ba", "answer": "ba"}) + "\n")


def problems(job: str, model_type: str, **sections: Any) -> str | None:
    """What a check says of a job with a model of that kind; None where it passes."""
    if not Path(model_type).is_dir():
        wide = {"head_dim": 32} if model_type in ("qwen3_moe", "glm4_moe") else {}  # as engines on a CPU want them
        saved_mixture(Path(model_type), model_type, **wide)
    lengths = {"max_length": 64} if job == "sft" else {}
    values: dict[str, Any] = {"data": {"train": "rows.jsonl"} | lengths, "cluster": {"cpus": 4}} | JOBS[job]
    for name, section in ({"model": {}} | sections).items():
        values[name] = values.get(name, {}) | section
    values["model"] = {"path": model_type} | values["model"]
    try:
        examine(validate(values))
    except UserError as error:
        return "\n".join(error.problems)
    return None


def test_the_source_says_what_a_family_has() -> None:
    """As its modules do, without importing them."""
    import importlib

    for model_type in MIXTURES:
        kind = type(config_of(model_type))
        module: Any = importlib.import_module(kind.__module__.replace("configuration_", "modeling_"))
        assert balances_experts(model_type) is hasattr(module, "load_balancing_loss_func") is (model_type in BALANCED)
        assert fuses_experts(model_type) is (model_type not in ("jetmoe", "dbrx", "llama4_text"))
    assert balances_experts("no_such") is fuses_experts("no_such") is None


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("model_type", "name"), [("deepseek_v3", "DeepseekV3ForCausalLM"), ("glm4_moe", "Glm4Moe")])
def test_a_coefficient_that_nothing_reads_is_refused(model_type: str, name: str, job: str) -> None:
    told = problems(job, model_type, model={"router_aux_loss": 0.01})
    assert told is not None and told.startswith(f"model.router_aux_loss: must be left out for {name}")
    assert told.endswith("which has no load-balancing loss (in transformers), got 0.01")
    assert problems("sft", model_type, model={"router_aux_loss": 0}) is None
    assert problems(job, "qwen3_moe", model={"router_aux_loss": 0.01}) is None


def test_dense_models_have_none() -> None:
    values = {"data": {"train": "rows.jsonl"}, "model": {"init": {}, "router_aux_loss": 0.1}} | JOBS["sft"]
    with pytest.raises(UserError, match="must be left out for Qwen2ForCausalLM, which has no load-balancing loss"):
        examine(validate(values))


def test_adapters_of_experts_are_merged_for_engines() -> None:
    """vLLM takes them in another form; those of attention are sent as they are."""
    adapters: dict[str, Any] = {"lora": {"rank": 4}}
    told = problems("grpo", "qwen3_moe", model=adapters)
    assert told == (
        "rollout.transfer.lora: must be merged where adapters reach experts (model.lora.targets=[q_proj, v_proj] names "
        "other layers; in bf16 merged needs max_merge_error) in Qwen3MoeForCausalLM, got adapter"
    )
    merged = JOBS["grpo"]["rollout"] | {"transfer": {"lora": "merged"}}
    assert problems("grpo", "qwen3_moe", model=adapters, rollout=merged) is None
    attention = {"lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}}
    assert problems("grpo", "qwen3_moe", model=attention) is None
    assert problems("grpo", "qwen3_moe", model={"lora": {"rank": 4, "targets": ["experts.down_proj"]}}) == told
    assert problems("sft", "qwen3_moe", model=adapters) is None


@pytest.mark.parametrize("group", ["policy", "reference"])
def test_dbrx_is_not_divided(group: str) -> None:
    """Its ranks would wait for each other."""
    given = {group: {"zero_stage": 3}}
    job = {"algorithm": {"name": "grpo", "kl_coef": 0.1}} if group == "reference" else {}
    told = problems("grpo" if job else "sft", "dbrx", **given, **job)
    assert told is not None and told.startswith(f"{group}.zero_stage: must be below 3 for dbrx")
    assert problems("sft", "dbrx") is None


def test_experts_that_other_tokens_choose_are_refused() -> None:
    from transformers import DogeConfig

    Path("doge").mkdir()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    DogeConfig(**sizes, vocab_size=64, is_moe=True, num_experts=16, num_experts_per_tok=2).save_pretrained("doge")
    from launch.models.mixtures import check_mixture

    config = validate({"data": {"train": "rows.jsonl"}, "model": {"path": "doge"}} | JOBS["sft"])
    with pytest.raises(UserError, match=r"^model\.path: doge cannot be trained with is_moe"):
        check_mixture(config, json.loads(Path("doge/config.json").read_text()), sampled=False)
