"""Sizes of layers that are not those of a dense decoder: what is known of them is counted, and of the rest nothing is
said, and nothing refused."""

from typing import Any

import pytest

from actors.config import UserError
from launch.checks.engine_shape import check_engine_shape
from launch.checks.findings import Findings
from launch.checks.fits import check_bucket
from launch.checks.report import print_tables
from launch.config import RunConfig, validate
from launch.kube import sizes
from launch.models.class_fields import filled
from launch.sizes.estimate import DecoderShape, counted_parameters, decoder_shape, trainer_memory
from tests.families.table import FAMILIES

DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
MIXED = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}


def shape_of(**fields: Any) -> DecoderShape:
    found = decoder_shape(DENSE | fields)
    assert found is not None
    return found


def grpo(**rollout: Any) -> RunConfig:
    lengths = {"max_prompt_tokens": 10**6, "max_response_tokens": 10}
    return validate(
        {
            "algorithm": {"name": "grpo", "steps": 1},
            "model": {"path": "model"},
            "data": {"train": "rows.jsonl"},
            "reward": {"functions": ["exact_match"]},
            "rollout": lengths | {"memory_gib": 1} | rollout,
        }
    )


@pytest.mark.parametrize(
    ("fields", "known", "keeps_all"),
    [
        ({}, True, True),
        ({"head_dim": 32}, True, True),
        ({"sliding_window": 4096}, True, False),
        ({"sliding_window": 4096, "use_sliding_window": False}, True, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False, False),
        ({"mamba_d_state": 16}, False, False),
        ({"mamba_d_state": None}, True, True),
        (LATENT, False, False),
        ({"head_dim": 16, "global_head_dim": 32}, False, False),
        ({"head_dim": 16, "v_head_dim": 16}, True, True),
        (MIXED, True, True),
        ({"num_local_experts": 8}, False, True),  # nobody says how many of them a token goes through
        ({"num_local_experts": 0, "num_experts_per_tok": 0}, True, True),
    ],
)
def test_what_the_fields_tell(fields: dict[str, Any], known: bool, keeps_all: bool) -> None:
    shape = shape_of(**fields)
    assert (shape.activations_known, shape.keeps_all) == (known, keeps_all)


def test_heads_that_are_none_have_no_shape() -> None:
    assert decoder_shape(DENSE | {"num_attention_heads": 0}) is None
    assert decoder_shape(DENSE | {"num_attention_heads": [4, 2]}) is None
    assert decoder_shape(DENSE | {"head_dim": [16, 32]}) is None


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        (MIXED, 2 * 96),
        (MIXED | {"shared_expert_intermediate_size": 40}, 2 * 96 + 40),
        (MIXED | {"n_shared_experts": 3}, (2 + 3) * 96),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 2 * 128),
        ({"num_local_experts": 8}, 0),
    ],
)
def test_a_token_goes_through_some_experts(fields: dict[str, Any], size: int) -> None:
    assert shape_of(**fields).expert_size == size
    assert shape_of(**fields).experts == 8


def test_activations_count_the_experts_of_a_token_or_nothing() -> None:
    config = grpo().policy

    def kept(fields: dict[str, Any], *, checkpointing: bool = False) -> int:
        shape = shape_of(**fields)
        return trainer_memory(shape, 1000, config, "fp32", gradient_checkpointing=checkpointing).activations

    # 4 numbers for each of 2 x 96 instead of 128, in 2 layers.
    assert kept(MIXED) - kept({}) == config.micro_batch_tokens * 2 * 4 * (2 * 96 - 128) * 4
    assert kept({"mamba_d_state": 16}, checkpointing=True) == kept(LATENT) == 0


def test_only_what_an_engine_keeps_whole_must_fit() -> None:
    wide = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 64}
    with pytest.raises(UserError, match=r"^rollout.memory_gib: must hold the keys and values of one sequence"):
        check_engine_shape(grpo(), shape_of(**wide), 10**6)
    for fields in ({"sliding_window": 64}, LATENT, {"layer_types": ["conv"] * 32}):
        check_engine_shape(grpo(), shape_of(**wide, **fields), 10**6)


def test_heads_of_several_sizes_are_not_judged_by_one() -> None:
    with pytest.raises(UserError, match=r"^model.path: heads must be of size 32, "):
        check_engine_shape(grpo(), shape_of(), 10)
    check_engine_shape(grpo(), shape_of(**LATENT), 10)


def test_a_matrix_that_may_not_be_there_needs_no_room() -> None:
    config = grpo(gpus_per_engine=1).model_copy(deep=True)
    cluster, policy = config.cluster, config.policy.model_copy(update={"gpus_per_rank": 1})
    shared = config.model_copy(update={"policy": policy, "cluster": cluster.model_copy(update={"placement": "shared"})})
    huge = {"intermediate_size": 10**9}
    with pytest.raises(UserError, match=r"^rollout.transfer.bucket_mib: must hold the model's largest tensor"):
        check_bucket(shared, shape_of(**huge))
    check_bucket(shared, shape_of(**huge, **MIXED))


def test_parameters_are_counted_of_known_families_alone() -> None:
    assert counted_parameters(DENSE) is not None
    for fields in (MIXED | {"model_type": "qwen3_moe"}, {"model_type": "gemma"}, {"model_type": "jamba"}):
        assert counted_parameters(DENSE | fields) is None


@pytest.mark.parametrize(
    ("name", "experts", "windows", "recurrent", "latent"),
    [
        ("llama", 0, False, False, False),
        ("qwen2", 0, False, False, False),
        ("mistral sliding", 0, True, False, False),
        ("gemma3", 0, True, False, False),
        ("qwen3_moe", 4, False, False, False),
        ("gpt_oss", 4, True, False, False),
        ("deepseek_v3", 4, False, False, True),
        ("qwen3_next", 4, False, True, False),
        ("jamba", 4, False, True, False),
        ("bamba", 0, False, True, False),
        ("lfm2", 0, False, True, False),
        ("kimi_linear", 4, False, True, True),
    ],
)
def test_families_by_what_their_classes_fill_in(
    name: str, experts: int, windows: bool, recurrent: bool, latent: bool
) -> None:
    shape = decoder_shape(filled(FAMILIES[name]))
    assert shape is not None
    assert (shape.experts, shape.windows, shape.recurrent) == (experts, windows, recurrent)
    assert (shape.head_dim == 0) == latent


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "model of 1,000 parameters; "),
        ({}, " in all processes, activations at their most"),
        (LATENT, " in all processes, without activations, which are not known for its layers"),
        (LATENT | MIXED, "model of 1,000 parameters, 8 experts in a layer; "),
    ],
)
def test_the_report_says_what_is_not_counted(
    fields: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_tables(Findings(grpo(), shape=shape_of(**fields), parameters=1000))
    shown = capsys.readouterr().out
    assert told in shown
    assert ("an engine's cache holds" in shown) == (not fields)


def test_pods_without_gpus_are_not_sized_by_what_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, known in (({}, True), (LATENT, False)):
        found = Findings(grpo(), shape=shape_of(**fields), parameters=1000)
        monkeypatch.setattr(sizes, "sized", lambda config, found=found: found)
        assert (sizes.host_memory(found.config) is not None) == known
