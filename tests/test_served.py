"""Which of vLLM's implementations serves a family, what it is told, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.models.tokenizer import build_char_tokenizer
from actors.models.tried import TRIED
from actors.rollout import served as module
from actors.rollout.served import Served, served
from launch.checks.check import examine
from launch.checks.engine_family import runs_transformers, served_as
from launch.config import validate
from tests.families.engine_sizes import for_engine
from tests.families.table import FAMILIES, config_of, write


def values_of(name: str, **changes: Any) -> dict[str, Any]:
    """Of a family's text part, all that its class fills in included."""
    return config_of(name).get_text_config().to_dict() | changes


def how(name: str, *, on_gpu: bool = False, asked: str | None = None, **changes: Any) -> Served:
    return served(values_of(name, **changes), composite=False, on_gpu=on_gpu, asked=asked)


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        how(name, **options)
    [line] = caught.value.problems
    return line


def test_every_kind_that_is_trained_is_served_or_refused_with_a_reason() -> None:
    own, other = set(module._OWN_CLASS), set(module._BACKEND)
    refused, not_on_cpu = set(module._REFUSED), set(module._NOT_ON_CPU)
    assert own | other | refused | not_on_cpu | set(module._NEED_TORCHVISION) >= TRIED
    assert not refused & (own | other | not_on_cpu) and not not_on_cpu & (own | other)
    assert set(module._OWN_CLASS_ON_GPU) & own == set()


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("qwen2 sliding", {}, "windows in some layers"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, ""),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("llama", {"hidden_act": "gelu"}, "silu alone"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("ernie4_5", {"use_bias": True}, "use_bias"),
        ("cohere2", {}, ""),
        ("gpt_oss", {}, ""),
        ("olmo2", {}, ""),
    ],
)
def test_transformers_code_serves_what_vllms_class_does_otherwise(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    """On CPU and GPU: it is no matter of kernels."""
    if name == "qwen3_moe":
        changes = changes | {"layer_types": ["full_attention", "sliding_attention"]}
    for on_gpu in (False, True):
        assert how(name, on_gpu=on_gpu, **changes).implementation == "transformers"
        if reason:
            assert reason in refusal(name, on_gpu=on_gpu, asked="vllm", **changes)
            assert how(name.removesuffix(" sliding") if " " in name else name, on_gpu=on_gpu).implementation == "auto"


def test_what_neither_serves_is_refused() -> None:
    line = "model.path: must be a model that vLLM 0.32 serves on CPU, got a"
    assert refusal("hrm_text") == f"{line} hrm_text, which gives other logprobs in vLLM than in transformers"
    assert refusal("gpt2 scaled by layer").startswith(f"{line} gpt2, which has scale_attn_by_inverse_layer_idx")
    assert refusal("falcon").startswith(f"{line} falcon, which has another ffn_hidden_size")
    assert refusal("mamba").endswith("which has recurrent layers that vLLM computes on GPUs alone")
    assert how("mamba", on_gpu=True) == Served()
    assert refusal("mamba2").endswith("has n_groups 2, of which vLLM computes 1 right on CPU")
    assert how("mamba2", on_gpu=True) == Served() == how("mamba2", n_groups=1)
    assert refusal("falcon_h1 multipliers", on_gpu=True).startswith(
        "model.path: must be a model that vLLM 0.32 serves,"
    )
    assert refusal("granite scaled", hidden_act="gelu").endswith("computes silu alone in vLLM, and has hidden_act gelu")
    assert refusal("qwen3_next").endswith("has linear attention that vLLM computes on CPU in bf16 alone")
    assert how("qwen3_next", on_gpu=True) == Served()


def test_an_implementation_that_is_asked_for_must_be_right() -> None:
    start = "rollout.vllm: model_impl must not be"
    assert refusal("granite", asked="transformers") == (
        f"{start} transformers for this granite, which is not served right by the code of transformers within vLLM, "
        "got transformers"
    )
    assert "attn_logit_softcapping, which transformers leaves out" in refusal("gemma3 capped", asked="transformers")
    assert refusal("cohere2", asked="vllm").startswith(f"{start} vllm for this cohere2, which has no class")
    assert how("llama", asked="transformers").implementation == "transformers"
    assert how("llama", asked="vllm") == Served()


def test_a_kind_that_nobody_has_tried_is_left_to_vllm() -> None:
    values = values_of("llama", model_type="no_such")
    assert served(values, composite=False, on_gpu=False) == Served()
    assert served(values, composite=False, on_gpu=False, asked="transformers") == Served("transformers")


def test_packages_that_a_class_needs() -> None:
    for name, composite in (("qwen3_5 text", False), ("gemma3", True)):
        for torchvision in (False, True):
            given: dict[str, Any] = {"composite": composite, "on_gpu": True, "torchvision": torchvision}
            if torchvision:
                assert served(values_of(name), **given).implementation == "auto"
                continue
            with pytest.raises(UserError, match="needs torchvision, which is not installed"):
                served(values_of(name), **given)


def test_fields_that_vllm_reads_and_transformers_does_not_write() -> None:
    assert how("lfm2") == Served("auto", {"conv_dim": 32, "block_dim": 32}, plain_rotary=True)
    assert how("lfm2", on_gpu=True, conv_dim=48) == Served("auto", {"block_dim": 32})
    assert how("deepseek_v2 greedy", norm_topk_prob=True).overrides == {"norm_topk_prob": False}
    assert how("hy_v3").overrides["first_k_dense_replace"] == 1
    # Layers with experts, of two: the second. vLLM goes by the step alone.
    llama4 = {"attention_chunk_size": 128, "interleave_moe_layer_step": 1}
    assert how("llama4 text", **llama4).overrides == {"interleave_moe_layer_step": 2}
    assert refusal("llama4 text", **llama4, moe_layers=[0, 1, 3], num_hidden_layers=4).endswith(
        "in every so many alone"
    )
    assert "attention_chunk_size 16" in refusal("llama4 text")
    # A field that the class of the model does not know, and vLLM follows.
    assert how("gpt_neox").overrides == {"num_key_value_heads": 4}


def job(path: Path, **rollout: Any) -> Any:
    return validate(
        {
            "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 2, "samples_per_prompt": 2},
            "model": {"path": str(path)},
            "data": {"train": "algorithms.tasks:sort_letters", "arguments": {"count": 4, "length": 2}},
            "reward": {"functions": ["exact_match"]},
            "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8} | rollout,
        }
    )


@pytest.mark.parametrize(("name", "told"), [("cohere2", "not vLLM's own class"), ("olmo2", ""), ("qwen3", "")])
def test_a_check_tells_what_engines_run(name: str, told: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    values = config_of(name).to_dict()
    assert runs_transformers(job(tmp_path), values) == (name != "qwen3")
    assert served_as(job(tmp_path), values) == how(name)


def test_a_check_refuses_what_engines_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "hrm_text", for_engine("hrm_text"))
    write("hrm_text", tmp_path)
    build_char_tokenizer("abcdefgh").save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        examine(job(tmp_path))
    line = "model.path: must be a model that vLLM 0.32 serves on CPU, got a hrm_text, which gives other logprobs"
    assert any(each.startswith(line) for each in caught.value.problems), caught.value.problems
