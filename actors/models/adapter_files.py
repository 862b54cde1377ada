"""PEFT directories of adapters: their state and configuration, written, and merged into the model they belong to.

PEFT takes seconds to import, so only functions that need it do.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)

from actors.files.readable import make_readable
from actors.models.adaptable import score_heads
from actors.models.adapter_settings import settings_of_merged
from actors.models.experts import adapted_experts, adapter_of, expert_tensors, peft_form, peft_names
from actors.models.hub_cache import split_commit
from actors.models.lora import (
    ADAPTER,
    Gather,
    MergeError,
    adapted_layers,
    adapter_parameters,
    parameter_metas,
)
from actors.models.peft_names import names_in_directory


def adapter_state(model: PreTrainedModel, gather: Gather, *, keep: bool) -> dict[str, torch.Tensor]:
    """The trained tensors, a score head included, on CPU under the names of a PEFT directory; empty without `keep`.

    Collective under ZeRO-3.
    """
    from peft import get_peft_model_state_dict

    layers = {f"{name}.": layer for name, layer in adapted_layers(model).items()}
    named = {
        prefix + name: value for prefix, layer in layers.items() for name, value in adapter_parameters(layer).items()
    }
    inside = tuple(f"{head}." for head in score_heads(model))
    heads = {name: value for name, value in model.named_parameters() if name.startswith(inside)}
    experts = {
        (place, number): parameter
        for name, module in adapted_experts(model).items()
        for tensor, place in peft_names(name, module).items()
        for number, parameter in enumerate(adapter_of(module, tensor))
    }
    found: dict[Any, torch.Tensor] = {}
    for name, parameter in (named | heads | experts).items():
        with gather([parameter]):
            if keep:  # rank 0's; the others only help to gather
                found[name] = parameter.detach().cpu().clone()
    if not keep:
        return {}
    adapters = {name: found[name] for name in named}
    trained = get_peft_model_state_dict(model, adapters, ADAPTER, save_embedding_layers=False) if adapters else {}
    trained |= {name: found[name] for name in heads}
    for place in dict.fromkeys(place for place, _ in experts):
        trained |= zip(place, peft_form(found[place, 0], found[place, 1]), strict=True)
    return {f"base_model.model.{name}": tensor.contiguous() for name, tensor in trained.items()}


def adapter_config(model: PreTrainedModel, base: str | None) -> str:
    """adapter_config.json of a PEFT directory whose adapters belong to the model in the directory `base`."""
    given: Any = model.peft_config[ADAPTER]  # type: ignore[index]
    settings: dict[str, object] = given.to_dict() | names_in_directory(model, given)
    name, commit = split_commit(base) if base else (None, None)
    settings |= {"base_model_name_or_path": name, "revision": commit}
    settings |= {"inference_mode": True, "modules_to_save": score_heads(model) or None}
    return json.dumps(settings, indent=2, sort_keys=True, default=sorted)


def reach_note(model: PreTrainedModel) -> str | None:
    """What adapters of a mixture's layers do not reach: experts that compute in ways of their own; None where there are
    no such experts, or no adapters."""
    sizes = {name: math.prod(shape) for name, _, shape in parameter_metas(model)}
    reached, total = sum(sizes[f"{name}.weight"] for name in adapted_layers(model)), sum(sizes.values())
    left = sum(size for name, size in sizes.items() if re.search(r"\.experts\.|_linear\.weight", name))
    if not reached or not left or expert_tensors(model):
        return None
    name = type(model).__name__
    return (
        f"adapters reach {reached / total:.0%} of the weights: the experts of {name} ({left / total:.0%}) compute in a "
        f"way of their own and get none"
    )


def write_adapter(directory: Path, config: str, state: dict[str, torch.Tensor]) -> None:
    """Write a PEFT directory, which `PeftModel.from_pretrained(base, directory)` loads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(config)
    save_file(state, directory / "adapter_model.safetensors")
    make_readable(directory)


def merge_adapter(directory: Path, base: str, output: Path) -> float:
    """Merge a PEFT directory into the model in the directory `base`, whole to `output`; returns `MergeError.value`."""
    from peft import PeftModel

    task = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    scores = {"num_labels": 1} if task == "SEQ_CLS" else {}
    loader: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    # Of the base neither its generation_config.json, which is copied, is read, nor the attention it asks for needed.
    options = {"dtype": "auto", "attn_implementation": "eager", "generation_config": GenerationConfig()}
    options["config"] = AutoConfig.from_pretrained(base, trust_remote_code=False, **scores)
    model = loader.from_pretrained(base, trust_remote_code=False, **options)
    adapted: Any = PeftModel.from_pretrained(model, str(directory))
    error = _merge_layers(adapted).value
    adapted.unload().save_pretrained(output)
    settings_of_merged(directory, base, output, scores=bool(scores))
    make_readable(output)
    return error


def _merge_layers(model: Any) -> MergeError:
    """Merge in place, layer by layer in float32 and rounded once; PEFT's own way rounds the change before it adds."""
    error = MergeError()
    for layer in model.modules():
        if not hasattr(layer, "get_base_layer") or not hasattr(layer, "merge"):
            continue
        # Of a parameter's adapter: what the module below calls by its name.
        name = getattr(layer, "parameter_name", "weight")
        weight: torch.Tensor = getattr(layer.get_base_layer(), name)
        before, dtype = weight.detach().clone(), weight.dtype
        layer.float()
        layer.merge()
        exact = getattr(layer.get_base_layer(), name).detach().clone()
        layer.to(dtype)
        error.add(before, exact, getattr(layer.get_base_layer(), name).detach())
    return error
