"""LoRA inside a model: what is trained, merging, disabling, PEFT directories, freezing; syncing is in test_sync."""

import copy
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from actors.config import LoraConfig, ModelConfig, ModelInit, UserError
from actors.models.adapter_files import adapter_config, adapter_state, merge_adapter, write_adapter
from actors.models.export import export_model
from actors.models.lora import (
    MergeError,
    adapted_layer_kinds,
    adapters_disabled,
    add_adapters,
    freeze_parameters,
    has_adapters,
    parameter_metas,
    plain_parameters,
    quantization_config,
    select_trained,
    unquantized_shell,
)
from actors.models.tokenizer import tokenizer_for
from launch.verbs.export import export
from tests.weights import weights_of

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TOKENS = torch.arange(1, 13)[None]
KINDS_CHOSEN = ("self_attn.q_proj", "mlp.down_proj")
KINDS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def not_sharded(parameters: object) -> Any:
    """A model that is whole in this process needs no gathering."""
    return nullcontext()


def causal(family: type = Qwen2Config, *, tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A new model, always the same."""
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(family(**SIZES, tie_word_embeddings=tied), dtype=dtype)


def classifier() -> Any:
    """A new model with one score."""
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(Qwen2Config(**SIZES, num_labels=1), dtype=torch.float32)


def logits(model: Any) -> torch.Tensor:
    """Of a fixed input, in double precision."""
    with torch.no_grad():
        return model(TOKENS).logits.double()


def trained(model: Any) -> Any:
    """The model with some other values in everything that is trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def merged(model: Any) -> dict[str, torch.Tensor]:
    """Plain parameters with the adapters in them."""
    return {name: tensor.clone() for name, tensor in plain_parameters(model, not_sharded, merged=True)}


@pytest.mark.parametrize(("family", "tied"), [(Qwen2Config, True), (LlamaConfig, False)])
def test_only_adapters_are_trained_and_change_nothing_at_first(family: type, tied: bool) -> None:
    """All linear layers but the output embedding; the same seed gives the same adapters whatever happened before."""
    model = causal(family, tied=tied)
    before = logits(model)
    add_adapters(model, LoraConfig(rank=4), seed=1)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * len(KINDS) * 2 and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert torch.equal(logits(model), before)
    again, other = causal(family, tied=tied), causal(family, tied=tied)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    add_adapters(again, LoraConfig(rank=4), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    add_adapters(other, LoraConfig(rank=4), seed=2)
    weights = [m.model.layers[1].mlp.up_proj.lora_A["default"].weight for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_adapters_have_the_dtype_of_their_layer() -> None:
    """bf16 below bf16."""
    model = causal(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["q_proj", "mlp.up_proj"], {"self_attn.q_proj", "mlp.up_proj"}),
        (["model.layers.1.self_attn.v_proj"], {"self_attn.v_proj"}),
    ],
)
def test_targets(targets: list[str], adapted: set[str]) -> None:
    """Whole names and their ends."""
    model = causal()
    add_adapters(model, LoraConfig(rank=2, targets=targets), seed=0)
    found = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert {name.split(".", 3)[3] for name in found} == adapted
    assert len(found) == (1 if "layers.1" in targets[0] else 4)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "qproj"], r"model\.lora\.targets: .* \(did you mean q_proj\?\), got qproj$"),
        (["lm_head"], r"other than the output embedding .*, got lm_head$"),
        (["embed_tokens"], "got embed_tokens$"),
        (["proj"], "got proj$"),
    ],
)
def test_targets_that_cannot_have_adapters(targets: list[str], message: str) -> None:
    """One line with the nearest name."""
    with pytest.raises(UserError, match=message):
        add_adapters(causal(tied=False), LoraConfig(targets=targets), seed=0)


@pytest.mark.parametrize(("family", "tied"), [(Qwen2Config, True), (LlamaConfig, False)])
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "down_proj"]}])
def test_merged_parameters_are_those_of_the_plain_model(options: dict[str, Any], family: type, tied: bool) -> None:
    """Same names, order and shapes; a plain model with them answers alike, and the model itself stays as it was."""
    plain, model = causal(family, tied=tied), causal(family, tied=tied)
    expected = [(name, p.dtype, tuple(p.shape)) for name, p in plain.named_parameters()]
    assert parameter_metas(model) == expected
    add_adapters(model, LoraConfig(rank=4, alpha=8, **options), seed=1)
    trained(model)
    before = copy.deepcopy(model.state_dict())
    state = merged(model)
    assert parameter_metas(model) == expected == [(name, t.dtype, tuple(t.shape)) for name, t in state.items()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(state[name])
    assert (logits(plain) - logits(model)).abs().max() < 1e-5
    assert (logits(causal(family, tied=tied)) - logits(model)).abs().max() > 1e-2, "the adapters must matter"
    base = dict(plain_parameters(model, not_sharded, merged=False))
    assert all(torch.equal(base[name], p) for name, p in causal(family, tied=tied).named_parameters())


def test_settings_become_these_of_peft() -> None:
    """Away from their defaults, and PEFT 0.21.2's own decide nothing else: no dropout, biases or initial values of
    another kind."""
    model = causal()
    config = LoraConfig(rank=3, alpha=7, dropout=0.25, rslora=True, dora=True, targets=["q_proj", "down_proj"])
    add_adapters(model, config, seed=1)
    given, plain = (each.to_dict() for each in (model.peft_config["default"], PeftLoraConfig()))
    assert {name: value for name, value in given.items() if value != plain[name]} == {
        "r": 3,
        "lora_alpha": 7,
        "lora_dropout": 0.25,
        "use_rslora": True,
        "use_dora": True,
        "target_modules": {f"model.layers.{index}.{name}" for index in (0, 1) for name in KINDS_CHOSEN},
        "task_type": "CAUSAL_LM",
    }
    expected = {"bias": "none", "init_lora_weights": True, "modules_to_save": None, "layers_to_transform": None}
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_a_merged_weight_is_the_formula(rslora: bool, scaling: float) -> None:
    """W + scaling B A, entry by entry."""
    model = causal()
    add_adapters(model, LoraConfig(rank=4, alpha=8, rslora=rslora), seed=1)
    layer = trained(model).model.layers[0].self_attn.k_proj
    parts = (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    w, a, b = (part.weight.detach() for part in parts)
    found = merged(model)["model.layers.0.self_attn.k_proj.weight"]
    for i in (0, 7):
        for j in (0, 31):
            expected = float(w[i, j]) + scaling * sum(float(b[i, r]) * float(a[r, j]) for r in range(4))
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)


def small(model: Any, size: float) -> Any:
    """The model with some B of the given size: adapters that have learned little."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-1])
def test_bf16_weights_are_merged_in_float32_and_rounded_once(options: dict[str, Any], size: float) -> None:
    """Every weight is the nearest bf16 to its formula in double precision, and the error is that of its definition."""
    model = causal(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=4, alpha=8, **options), seed=1)
    small(model, size)
    error = MergeError()
    state = {n: t.clone() for n, t in plain_parameters(model, not_sharded, merged=True, error=error)}
    change = lost = 0.0
    for name, layer in ((n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")):
        w, a, b = (p.weight.detach().double() for p in (layer.base_layer, layer.lora_A.default, layer.lora_B.default))
        exact = w + layer.scaling["default"] * b @ a
        if options.get("dora"):
            exact *= (layer.lora_magnitude_vector.default.weight.double() / exact.norm(dim=1))[:, None]
        rounded = state[f"{name}.weight"].double()
        spacing = 2.0 ** (torch.frexp(exact)[1].double() - 8)
        assert ((rounded - exact).abs() <= 0.5001 * spacing).all()
        change, lost = change + float((exact - w).square().sum()), lost + float((exact - rounded).square().sum())
    assert error.value == pytest.approx((lost / change) ** 0.5, rel=1e-3)
    assert 0 < error.value < 1


def test_most_of_a_small_change_does_not_survive_bf16() -> None:
    """With B of about 1e-4 many weights are what they were: the reason why adapters are sent as they are."""
    model = causal(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=16, alpha=32), seed=1)
    small(model, 1e-4)
    adapted = {f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "lora_A")}
    base = dict(plain_parameters(model, not_sharded, merged=False))
    same = [(tensor == base[name]).float().mean() for name, tensor in merged(model).items() if name in adapted]
    assert 0.3 < torch.stack(same).mean() < 0.95


def test_new_adapters_lose_nothing_and_float32_loses_nothing() -> None:
    model = causal(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=4), seed=1)
    error = MergeError()
    dict(plain_parameters(model, not_sharded, merged=True, error=error))
    assert error.value == 0
    whole = causal()
    add_adapters(whole, LoraConfig(rank=4), seed=1)
    dict(plain_parameters(small(whole, 1e-4), not_sharded, merged=True, error=error))
    assert error.change > 0 == error.lost, "float32 is what is computed in"
    assert not MergeError(change=float("nan"), lost=1.0).value <= 1


@pytest.mark.parametrize("dora", [False, True])
def test_a_disabled_adapter_leaves_the_base(dora: bool) -> None:
    """Within the context the model is the initial one, also after an error in it; training goes on afterwards."""
    model = causal()
    base = logits(model)
    add_adapters(model, LoraConfig(rank=4, dora=dora), seed=1)
    adapted = logits(trained(model))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with adapters_disabled(model):
        assert torch.equal(logits(model), base)
    with pytest.raises(ZeroDivisionError), adapters_disabled(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model), adapted) and not torch.allclose(adapted, base)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable


def _write(model: PreTrainedModel, base: str | None, directory: Path) -> Path:
    write_adapter(directory, adapter_config(model, base), adapter_state(model, not_sharded, keep=True))
    return directory


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_a_peft_directory_loads_on_its_base(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT's own loader gives the same answers as the model that was trained."""
    model = causal(LlamaConfig, tied=False)
    add_adapters(model, LoraConfig(rank=4, alpha=8, **options), seed=1)
    directory = _write(trained(model), None, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(causal(LlamaConfig, tied=False), str(directory))
    assert (logits(loaded) - logits(model)).abs().max() < 1e-6
    assert adapter_state(model, not_sharded, keep=False) == {}


def test_a_score_head_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    """The head is no layer for an adapter; it is trained whole and lies in the PEFT directory."""
    model = classifier()
    add_adapters(model, LoraConfig(rank=4), seed=1)
    assert model.score.weight.requires_grad and not hasattr(model.score, "lora_A")
    assert not model.model.embed_tokens.weight.requires_grad
    directory = _write(trained(model), None, tmp_path / "adapter")
    assert json.loads((directory / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    loaded = PeftModel.from_pretrained(classifier(), str(directory))
    assert (logits(loaded) - logits(model)).abs().max() < 1e-6
    assert (logits(classifier()) - logits(model)).abs().max() > 0.1
    plain = classifier()
    plain.load_state_dict(merged(model))
    assert (logits(plain) - logits(model)).abs().max() < 1e-5


def readable_by(directory: Path) -> set[int]:
    """Permissions of the files below a directory."""
    return {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}


def test_exported_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    """Also where an earlier export has private files; safetensors makes them 0600 by itself."""
    model, tokenizer = causal(), tokenizer_for(ModelConfig(init=ModelInit()))
    modes = []
    for umask, name in ((0o027, "group"), (0o077, "mine"), (0o022, "run/export")):
        old = os.umask(umask)
        try:
            export_model(model, *weights_of(model), tokenizer, tmp_path / name)
        finally:
            os.umask(old)
        modes.append(readable_by(tmp_path / name))
    assert modes == [{0o640}, {0o600}, {0o644}]
    (tmp_path / "run/export/model.safetensors").chmod(0o600)
    old = os.umask(0o022)
    try:
        export(str(tmp_path / "run"), output=str(tmp_path / "copy"))
    finally:
        os.umask(old)
    assert readable_by(tmp_path / "copy") == {0o644}


@pytest.mark.parametrize(("make", "loader"), [(causal, AutoModelForCausalLM), (classifier, None)])
def test_merging_a_peft_directory(make: Callable[[], Any], loader: Any, tmp_path: Path) -> None:
    """The whole model that it gives answers like base and adapter together."""
    base = tmp_path / "base"
    make().save_pretrained(base)
    tokenizer_for(ModelConfig(init=ModelInit())).save_pretrained(base)
    model = make()
    add_adapters(model, LoraConfig(rank=4), seed=1)
    merge_adapter(_write(trained(model), str(base), tmp_path / "adapter"), str(base), tmp_path / "whole")
    whole = (loader or AutoModelForSequenceClassification).from_pretrained(tmp_path / "whole")
    assert (logits(whole) - logits(model)).abs().max() < 1e-5
    assert (tmp_path / "whole" / "tokenizer_config.json").is_file()
    assert readable_by(tmp_path / "whole") == readable_by(tmp_path / "adapter") == {0o644}


def test_merging_a_peft_directory_rounds_once_and_says_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's weights in bf16 are those of an export, and its error is told; PEFT's own merge rounds twice."""
    base = tmp_path / "base"
    causal(dtype=torch.bfloat16).save_pretrained(base)
    tokenizer_for(ModelConfig(init=ModelInit())).save_pretrained(base)
    model = causal(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=4, alpha=8), seed=1)
    error, expected = MergeError(), {}
    for name, tensor in plain_parameters(small(model, 1e-3), not_sharded, merged=True, error=error):
        expected[name] = tensor.clone()
    adapter = _write(model, str(base), tmp_path / "adapter")
    assert export(str(adapter), output=str(tmp_path / "whole")) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    for name, parameter in whole.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, expected[name]), name
    told = f"merged: rounding lost {error.value:.1%} of what the adapters change; all of it is in {adapter}"
    assert told in capsys.readouterr().err.splitlines()


def test_merging_needs_the_base(tmp_path: Path) -> None:
    """An adapter that does not say what it belongs to, or whose base is gone or damaged, is an error of one line."""
    model = causal()
    add_adapters(model, LoraConfig(rank=2), seed=0)
    (tmp_path / "empty").mkdir()
    reasons = {
        "": "must be a model, got nothing",
        "gone": f"there is no directory {tmp_path / 'gone'}",
        "empty": "must be a model directory with a config.json, got the empty directory",
    }
    for name, reason in reasons.items():
        adapter = _write(model, str(tmp_path / name) if name else None, tmp_path / "adapter")
        with pytest.raises(UserError, match=r"RUN: base_model_name_or_path in \S+adapter_config.json") as caught:
            export(str(adapter), output=str(tmp_path / "whole"))
        assert reason in str(caught.value)


def test_layer_kinds_of_a_directory(tmp_path: Path) -> None:
    """What an engine must be ready for is known from config.json alone."""
    causal(LlamaConfig, tied=False).config.save_pretrained(tmp_path)
    assert adapted_layer_kinds(str(tmp_path), LoraConfig()) == KINDS
    assert adapted_layer_kinds(str(tmp_path), LoraConfig(targets=["mlp.up_proj", "q_proj"])) == ["q_proj", "up_proj"]


def test_frozen_parameters_get_no_gradient() -> None:
    """Exactly those that a pattern matches; either name of a tied tensor will do."""
    for pattern in ("model.embed_tokens.*", "lm_head.weight"):
        model = causal()
        freeze_parameters(model, [pattern, "*layers.0.*norm*"])
        model(TOKENS).logits.sum().backward()
        frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert frozen == {
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.post_attention_layernorm.weight",
        }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["model.embed_token.*"],
            r"model\.freeze: .*for example model\.embed_tokens\.weight\), got model\.embed_token",
        ),
        (["model.*"], "must leave something to train"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns: list[str], message: str) -> None:
    """No parameter, or all of them."""
    with pytest.raises(UserError, match=message):
        freeze_parameters(causal(), patterns)


def test_a_configuration_selects() -> None:
    """Adapters, a frozen part, or everything."""
    everything, adapters, part = causal(), causal(), causal()
    select_trained(everything, ModelConfig(path="x"), 0)
    select_trained(adapters, ModelConfig(path="x", lora=LoraConfig(rank=2)), 0)
    select_trained(part, ModelConfig(path="x", freeze=["*mlp*"]), 0)
    assert [has_adapters(model) for model in (everything, adapters, part)] == [False, True, False]
    assert all(parameter.requires_grad for parameter in everything.parameters())
    assert all(p.requires_grad == ("mlp" not in name) for name, p in part.named_parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_quantisation_needs_a_gpu() -> None:
    """The error says what is missing; without `quantize` there is nothing to configure."""
    assert quantization_config(ModelConfig(path="x")) is None
    with pytest.raises(UserError, match=r"model\.quantize: nf4 needs a GPU and the bitsandbytes package, got no GPU"):
        quantization_config(ModelConfig(path="x", lora=LoraConfig(), quantize="nf4"))


def test_a_shell_for_merged_weights_is_not_quantised(tmp_path: Path) -> None:
    """The export of a quantised model is a plain one: its config.json asks for nothing that a GPU must do."""
    model = causal()
    assert unquantized_shell(model) is model
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    unquantized_shell(model).save_pretrained(tmp_path, state_dict=merged(model))
    assert "quant" not in (tmp_path / "config.json").read_text()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    assert model.config.quantization_config is not None


def test_export_of_a_run_with_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole model, the adapters alone, and both together from a PEFT directory."""
    run, base = tmp_path / "run", tmp_path / "base"
    model = causal()
    model.save_pretrained(base)
    tokenizer_for(ModelConfig(init=ModelInit())).save_pretrained(base)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    trained(model).save_pretrained(run / "export", state_dict=merged(model))
    _write(model, str(base), run / "export" / "adapter")
    export(str(run), output=str(tmp_path / "whole"))
    export(str(run), output=str(tmp_path / "peft"), adapter=True)
    export(str(tmp_path / "peft"), output=str(tmp_path / "again"))
    export(str(run), output=None, adapter=True)
    assert capsys.readouterr().out.split("\n")[-2] == str(run / "export" / "adapter")
    assert not (tmp_path / "whole" / "adapter").exists()
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for directory in ("whole", "again"):
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / directory))
        assert (found - logits(model)).abs().max() < 1e-5
    with pytest.raises(UserError, match=r"--output: must be given to merge"):
        export(str(tmp_path / "peft"), output=None)
    with pytest.raises(UserError, match=r"--output: must be a new or empty directory"):
        export(str(tmp_path / "peft"), output=str(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"--adapter: needs a run with model\.lora, got"):
        export(str(base), output=None, adapter=True)
