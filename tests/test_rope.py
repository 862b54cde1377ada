"""Rotary positions that depend on length: those of plain transformers for each sequence alone, or an engine's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from actors.config import ModelConfig, UserError
from actors.episodes import Sequence
from actors.models.load import TokenLogprobs, load_model, load_value_model
from actors.models.rope import RopeRule, fix_rope, rope_rule
from actors.train.worker import pack_sequences
from launch.checks.rope import _of_type, _scale_alike
from tests.conftest import ROOT

ORIGINAL, LENGTHS, CPU = 16, [24, 5, 17, 40, 16, 8, 24], torch.device("cpu")
"""Length at which positions change, and sequences on both sides of it."""
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **fields}


def long(factors: int, **fields: Any) -> dict[str, Any]:
    """Longrope for `factors` frequencies."""
    short_factor, long_factor = ([start + step * at for at in range(factors)] for start, step in ((1, 0.1), (2, 0.5)))
    fields = {"original_max_position_embeddings": ORIGINAL} | fields
    return rope("longrope", short_factor=short_factor, long_factor=long_factor, **fields)


SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA: dict[str, Any] = {"layer_types": [SLIDING, FULL], "sliding_window": 8, "query_pre_attn_scalar": 32}
DYNAMIC = {"max_position_embeddings": ORIGINAL}
PHIMOE: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 2}
SCALES = {"short_mscale": 1.2, "long_mscale": 1.4}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)
DEPENDENT: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3 longrope": ("phi3", {"original_max_position_embeddings": ORIGINAL, "rope_parameters": long(16)}),
    "llama longrope": ("llama", {"rope_parameters": long(16, factor=3.0)}),
    "llama longrope scaled": ("llama", {"rope_parameters": long(16, attention_factor=1.7)}),
    "llama dynamic": ("llama", DYNAMIC | {"rope_parameters": rope("dynamic", factor=4.0)}),
    "phi dynamic partial": (
        "phi",
        DYNAMIC | {"rope_parameters": rope("dynamic", factor=4.0, partial_rotary_factor=0.5)},
    ),
    "hunyuan alpha": ("hunyuan_v1_dense", DYNAMIC | {"rope_parameters": rope("dynamic", factor=1.0, alpha=50.0)}),
    "phimoe longrope": ("phimoe", PHIMOE | {"rope_parameters": long(16, **SCALES)}),
    "gemma3 longrope": ("gemma3_text", GEMMA | {"rope_parameters": {SLIDING: rope("default"), FULL: long(16)}}),
    "gemma3 two": (
        "gemma3_text",
        GEMMA | DYNAMIC | {"rope_parameters": {SLIDING: rope("dynamic", factor=2.0), FULL: long(16)}},
    ),
    # With convolutions, so not packed whatever its positions.
    "lfm2 dynamic": (
        "lfm2",
        DYNAMIC | {"layer_types": ["conv", FULL], "rope_parameters": rope("dynamic", factor=4.0)},
    ),
    # Complex numbers in place of cosines and sines, of a part of the head.
    "deepseek_v2 dynamic": (
        "deepseek_v2",
        DYNAMIC
        | {"qk_rope_head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 32, "kv_lora_rank": 16, "q_lora_rank": None}
        | {"first_k_dense_replace": 2, "num_key_value_heads": 2}
        | {"rope_parameters": rope("dynamic", factor=4.0)},
    ),
}
"""Name -> model_type and fields of config.json, of models whose positions depend on length."""
CONSTANT: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {}),
    "linear": ("llama", {"rope_parameters": rope("linear", factor=4.0)}),
    "llama3": (
        "llama",
        {
            "rope_parameters": rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=ORIGINAL,
            )
        },
    ),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "yarn mscale": ("llama", {"rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.4}}),
    "yarn factor": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.6}}),
    "yarn untruncated": ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8.0}}),
    "partial": ("phi", {"rope_parameters": rope("default", partial_rotary_factor=0.5)}),
}
"""The same of models whose positions do not."""
ALL = DEPENDENT | CONSTANT


def config_of(name: str) -> PretrainedConfig:
    kind, fields = ALL[name]
    return CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(SIZES | fields)))


def fresh(name: str) -> Any:
    """Plain transformers' model, which has seen nothing yet."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(name), attn_implementation="eager").eval()


def written(name: str, directory: Path) -> str:
    fresh(name).save_pretrained(directory)
    return str(directory)


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    """[1, length]"""
    return torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(100 * seed + length))


def seen(model: Any, rule: RopeRule, length: int, computed: int | None = None) -> torch.Tensor:
    """Logits of a sequence of `length` tokens, of which the first `computed` go through the model."""
    with rule.calls(rule.regime(length)):
        return model(tokens(length)[:, :computed]).logits


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_sequence_is_what_it_is_alone_whatever_came_before(name: str) -> None:
    """Also where the tokens behind its last action are not computed, with which it would be shorter."""
    model = fresh(name)
    rule = fix_rope(model, None)
    before = {key: value.clone() for key, value in model.named_buffers()}
    for length in LENGTHS:
        alone = fresh(name)(tokens(length)).logits
        torch.testing.assert_close(seen(model, rule, length), alone, atol=2e-5, rtol=0)
        torch.testing.assert_close(seen(model, rule, length, length - 2), alone[:, : length - 2], atol=2e-5, rtol=0)
    assert {key: value.tolist() for key, value in model.named_buffers()} == {k: v.tolist() for k, v in before.items()}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_switch_is_seen(name: str) -> None:
    """What the other tests compare differs: the last token of a short sequence, once within a call of long ones."""
    model = fresh(name)
    rule = fix_rope(model, None)
    with rule.calls(rule.regime(40)):
        other = model(tokens(ORIGINAL)).logits
    assert (seen(model, rule, ORIGINAL) - other).abs().max() > 1e-3


IMAGES = ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_5_text", "cohere_compass_text"]
"""Families whose positions are three numbers, of images: the same three times, of text."""


def image_body(kind: str, given: dict[str, Any], fields: dict[str, Any]) -> Any:
    given = given | {"mrope_section": [4, 6, 6]}
    ropes = {FULL: given, SLIDING: given} if kind.startswith("cohere") else given
    values = SIZES | {"layer_types": [FULL, FULL], "rope_parameters": ropes} | fields
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIG_MAPPING[kind].from_dict(values), attn_implementation="eager").eval()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", IMAGES)
def test_rows_of_three_positions_are_as_alone(kind: str, dynamic: bool) -> None:
    """Right-padded rows of one regime, by the positions of text, one or three for each token."""
    given, fields = (rope("dynamic", factor=4.0), DYNAMIC) if dynamic else (rope("default"), {})
    model = image_body(kind, given, fields)
    rule = fix_rope(model, None)
    for lengths in ([5, 16], [40, 40]):
        longest = max(lengths)
        ids = torch.zeros(2, longest, dtype=torch.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = tokens(length, seed=row)[0]
        [regime] = {rule.regime(length) for length in lengths}
        positions = torch.arange(longest).expand(2, -1)
        for each in (positions, positions.expand(3, -1, -1)):
            with rule.calls(regime):
                found = model(input_ids=ids, position_ids=each).last_hidden_state
            for row, length in enumerate(lengths):
                alone = image_body(kind, given, fields)(tokens(length, seed=row)).last_hidden_state[0]
                torch.testing.assert_close(found[row, :length], alone, atol=2e-5, rtol=0)


def test_regimes() -> None:
    found = {name: [fix_rope(fresh(name), None).regime(length) for length in (1, 16, 17, 18, 40)] for name in ALL}
    switch, grows = [1, 1, 17, 17, 17], [1, 1, 17, 18, 40]
    assert found == {
        name: switch
        if name in ("gemma3 longrope", "phimoe longrope") or name.startswith(("phi3", "llama long"))
        else grows
        for name in DEPENDENT
    } | dict.fromkeys(CONSTANT, [None] * 5)
    assert [*map(fix_rope(fresh("llama dynamic"), None).regime, (5, 17, 16, 17, 18))] == [1, 17, 1, 17, 18]
    assert [*map(fix_rope(fresh("phi3 longrope"), 40).regime, (5, 17, 40))] == [None, None, None]


def sequences(lengths: list[int]) -> list[Sequence]:
    """Of a prompt of 3 tokens, the same for all, and a response."""
    prompt = tokens(3, seed=9)[0].numpy()
    return [
        Sequence(
            token_ids=np.concatenate([prompt, tokens(length, seed=at)[0, 3:].numpy()]),
            action_mask=np.arange(length) >= 3,
        )
        for at, length in enumerate(lengths)
    ]


def plain_logprobs(model: Any, sequence: Sequence) -> torch.Tensor:
    ids = torch.from_numpy(sequence.token_ids)[None]
    found = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found[torch.from_numpy(sequence.action_mask[1:])]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [*DEPENDENT, "yarn"])
def test_sequences_of_a_batch_are_as_alone(name: str, checkpointing: bool, tmp_path: Path) -> None:
    """Logprobs and gradients: a prompt is shared only where no frequency depends on length."""
    directory = written(name, tmp_path)
    loaded: Any = load_model(ModelConfig(path=directory, gradient_checkpointing=checkpointing), directory)
    policy, given = TokenLogprobs(loaded), sequences(LENGTHS)
    assert policy.shares_prompts == (name == "yarn")
    batch = pack_sequences(given, CPU, share_prompts=policy.shares_prompts)
    logprobs = policy(batch, 1.0, 8)[0]
    parts = logprobs if batch.sources is None else logprobs[torch.from_numpy(batch.sources)]
    found = {
        place: part[torch.from_numpy(given[place].action_mask)] for place, part in enumerate(parts.split(batch.lengths))
    }
    torch.stack([each.sum() for each in found.values()]).sum().backward()
    gradients = {key: value.grad for key, value in loaded.named_parameters()}
    plain: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    for place, sequence in enumerate(given):
        alone = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
        alone.load_state_dict(plain.state_dict())
        expected = plain_logprobs(alone, sequence)
        torch.testing.assert_close(found[place], expected, atol=3e-5, rtol=0)
        expected.sum().backward()
        for key, parameter in alone.named_parameters():
            target = plain.get_parameter(key)
            target.grad = parameter.grad if target.grad is None else target.grad + parameter.grad
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain.get_parameter(key).grad, atol=1e-3, rtol=1e-4)


def test_a_recomputed_layer_is_one_of_its_call() -> None:
    """Of rotary positions that are computed in a layer, once the call has ended, and others have begun."""
    model = fresh("phi3 longrope")
    rule, rotary, weight = fix_rope(model, None), model.model.rotary_emb, torch.ones(1, requires_grad=True)
    used: list[torch.Tensor] = []

    def layer(positions: torch.Tensor) -> torch.Tensor:
        used.append(rotary(weight, positions)[0])
        return (used[-1] * weight).sum()

    for regime in (17, 1):
        with rule.calls(regime):
            called = checkpoint(layer, torch.arange(8)[None], use_reentrant=False, context_fn=rule.checkpointed)
        with rule.calls(18 - regime):
            called.backward()
        assert torch.equal(*used[-2:])
    assert not torch.equal(used[0], used[-1])


def test_without_a_regime_a_call_is_as_long_as_it_says() -> None:
    """And is remembered by none that follows."""
    model = fresh("llama dynamic")
    rule = fix_rope(model, None)
    for length in LENGTHS:
        with rule.calls(length + 7):
            model(tokens(length))
        alone = fresh("llama dynamic")(tokens(length)).logits
        torch.testing.assert_close(model(tokens(length)).logits, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("value", [False, True])
def test_loading_hands_over_the_engines_length(value: bool, tmp_path: Path) -> None:
    directory = written("phi3 longrope", tmp_path)
    load = load_value_model if value else load_model
    found = [load(ModelConfig(path=directory), directory, engine_length=length) for length in (None, 16, 17)]
    assert [rope_rule(model).regime(20) for model in found] == [17, None, None]
    bodies: list[Any] = [model.base_model for model in found[1:]]
    short, long = (body.rotary_emb(torch.zeros(1), torch.arange(4)[None])[0] for body in bodies)
    assert (short - long).abs().max() > 0.1
    assert rope_rule(found[0]) is rope_rule(found[0])


def test_dynamic_positions_beyond_an_engines_are_refused() -> None:
    fix_rope(fresh("llama dynamic"), ORIGINAL)
    with pytest.raises(UserError) as caught:
        fix_rope(fresh("llama dynamic"), ORIGINAL + 1)
    assert caught.value.problems == (
        "rollout.max_prompt_tokens + rollout.max_response_tokens: must not exceed max_position_embeddings (16) of a "
        "model with dynamic rotary positions, of which vLLM has none beyond, got 17",
    )


@pytest.mark.parametrize("length", [32768, 32769])
def test_llama_4_scales_queries_only_in_long_engines(length: int) -> None:
    """As vLLM does, whatever config.json says."""
    fields = {"num_local_experts": 2, "no_rope_layers": [1, 0], "attn_temperature_tuning": True, "floor_scale": 4}
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama4_text"].from_dict(SIZES | fields))
    tuned = [layer.self_attn.attn_temperature_tuning for layer in model.model.layers]
    fix_rope(model, None)
    assert tuned == [layer.self_attn.attn_temperature_tuning for layer in model.model.layers]
    fix_rope(model, length)
    assert {layer.self_attn.attn_temperature_tuning for layer in model.model.layers} == {length > 32768}


@pytest.mark.parametrize("load", [load_model, load_value_model])
def test_unknown_positions_are_refused(load: Any, tmp_path: Path) -> None:
    config = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": rope("ntk", factor=2.0)}))
    with pytest.raises(UserError) as caught:
        load(ModelConfig(path=str(tmp_path)), str(tmp_path))
    known = "default, dynamic, linear, llama3, longrope, proportional, yarn"
    assert caught.value.problems == (f"model.path: rope_type must be one of {known}, got ntk",)


ENGINES = [("phi3 longrope", 16), ("phi3 longrope", 24), ("llama dynamic", 16), ("yarn", 40)]
TABLES = [
    *((name, length) for name in ("phi3 longrope", "llama longrope", "llama longrope scaled") for length in (16, 40)),
    *((name, length) for name in ("phimoe longrope",) for length in (16, 40)),
    *((name, ORIGINAL) for name in ("llama dynamic", "phi dynamic partial", "hunyuan alpha")),
    *((name, 40) for name in CONSTANT),
]


COMPUTED = [
    rope("linear", factor=4),
    rope("linear", factor=4.0),
    *(YARN | fields for fields in ({}, {"beta_fast": None}, {"beta_slow": 0}, {"factor": None}, {"beta_fast": 8.0})),
]
"""What vLLM computes, or fails to."""
SCALED = [
    YARN | fields
    for fields in (
        {},
        {"mscale": 0.7},
        {"mscale_all_dim": 0.7},
        {"mscale": 0.7, "mscale_all_dim": 0.7},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.2},
    )
]
"""DeepSeek's yarn."""


def prompts(length: int) -> list[list[int]]:
    """An engine has room for a token behind each."""
    return [tokens(count)[0].tolist() for count in (5, length - 1, 9)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What vLLM has, in a process of its own."""
    directory = tmp_path_factory.mktemp("ropes")
    for name in {name for name, _ in [*ENGINES, *TABLES]}:
        written(name, directory / name)
    asked = {
        "engines": [[name, length, prompts(length)] for name, length in ENGINES],
        "tables": TABLES,
        "computed": COMPUTED,
        "scales": SCALED,
    }
    (directory / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "tests.rope_engines", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    yield json.loads((directory / "told.json").read_text()) | {"directory": directory}


@pytest.mark.parametrize("at", range(len(ENGINES)), ids=[f"{name} {length}" for name, length in ENGINES])
def test_logprobs_are_those_of_an_engine_of_this_length(at: int, told: dict[str, Any]) -> None:
    name, length = ENGINES[at]
    directory = str(told["directory"] / name)
    policy = TokenLogprobs(load_model(ModelConfig(path=directory), directory, engine_length=length))
    for ids, theirs in zip(prompts(length), told["engines"][at], strict=True):
        batch = pack_sequences([Sequence(token_ids=np.array(ids), action_mask=np.arange(len(ids)) > 0)], CPU)
        with torch.no_grad():
            found = policy(batch, 1.0, 8)[0]
        np.testing.assert_allclose(found[1:].numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize("at", range(len(TABLES)), ids=[f"{name} {length}" for name, length in TABLES])
def test_positions_are_those_of_an_engine_of_this_length(at: int, told: dict[str, Any]) -> None:
    name, length = TABLES[at]
    model = fresh(name)
    fix_rope(model, length)
    found = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    for ours, theirs in zip(found, told["tables"][at], strict=True):
        expected = torch.tensor(theirs)
        torch.testing.assert_close(ours[0, :, : expected.shape[1]], expected, atol=1e-5, rtol=0)


def test_what_vllm_fails_to_compute_is_what_a_check_refuses(told: dict[str, Any]) -> None:
    assert told["computed"] == [_of_type(given) is None for given in COMPUTED]
    assert 2 < sum(told["computed"]) < len(COMPUTED)


def test_where_deepseek_is_scaled_otherwise_is_what_a_check_refuses(told: dict[str, Any]) -> None:
    found = []
    for given, engine in zip(SCALED, told["scales"], strict=True):
        config: Any = CONFIG_MAPPING["deepseek_v3"].from_dict({"qk_rope_head_dim": 32, "rope_parameters": dict(given)})
        found.append(DeepseekV3RotaryEmbedding(config).attention_scaling == pytest.approx(engine))
    assert found == [_scale_alike(given) for given in SCALED]
    assert found == [True, False, False, True, True, False]
