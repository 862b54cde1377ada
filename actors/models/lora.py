"""Low-rank adapters inside a Hugging Face model (arXiv 2106.09685), by PEFT: add, merge, disable, write, read.

Adapters are injected in place: the model keeps its class and its methods, every adapted layer W becomes

    W.base_layer  (frozen)      lora_A [r, in], lora_B [out, r]  (trained)      y = W x + scaling B A x

Experts that are one tensor have adapters of their own (`actors.models.experts`), which a PEFT directory has in the form
of PEFT's. Routers get none: they decide what the adapters learn from.

A tensor's plain name is the one it has in the model without adapters.

PEFT takes seconds to import, so only functions that need it do.
"""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol, TypeGuard

import torch
from torch.nn import Parameter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from actors.config import LoraConfig, ModelConfig, UserError
from actors.models.adaptable import linear_layers, score_heads
from actors.models.dividing import gathered_by_peft
from actors.models.experts import (
    adapted_experts,
    adapter_of,
    add_expert_adapters,
    expert_tensors,
    merged_expert,
)
from actors.models.hub_cache import configured_directory
from actors.models.peft_names import names_in_directory, without_conversion
from actors.models.state import state_tensors

Gather = Callable[[Sequence[torch.Tensor]], AbstractContextManager[object]]
"""A context in which the parameters are whole also under ZeRO-3, where every rank must enter it."""

ADAPTER = "default"


def select_trained(model: PreTrainedModel, config: ModelConfig, seed: int) -> None:
    """Leave to the optimizer what the configuration trains: adapters, or all but what `freeze` names. In place.

    Raises:
        UserError: see `add_adapters` and `freeze_parameters`.
    """
    if config.lora:
        add_adapters(model, config.lora, seed)
    elif config.freeze:
        freeze_parameters(model, config.freeze)


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Freeze the model and give its linear layers adapters that change nothing yet; a score head stays trainable.

    Adapters have the dtype of the layer they adapt; `seed` decides their initial values.

    Raises:
        UserError: when a target is no linear layer of the model, or one that cannot have an adapter.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    targets = _targets(model, config.targets)
    experts = sorted(set(targets) & set(expert_tensors(model)))
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=[name for name in targets if name not in experts],
        target_parameters=experts or None,
        task_type=_task_type(model),
    )
    _refuse_variants(config, model, settings)
    model.requires_grad_(False)
    # What is drawn later must not depend on how many adapters have drawn before.
    with torch.random.fork_rng(), gathered_by_peft(model):
        torch.manual_seed(seed)
        if settings.target_modules:
            with without_conversion():
                inject_adapter_in_model(replace(settings, target_parameters=None), model, adapter_name=ADAPTER)
        if experts:
            scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
            add_expert_adapters(model, experts, config.rank, scaling)
    model.peft_config = {ADAPTER: settings}  # type: ignore[assignment]
    for head in score_heads(model):
        model.get_submodule(head).requires_grad_(True)


def _refuse_variants(config: LoraConfig, model: PreTrainedModel, settings: Any) -> None:
    """Raise UserError for what PEFT does not know of adapters of parameters, which it would load from a directory."""
    parameters = names_in_directory(model, settings)["target_parameters"]
    for name, value in {"dora": config.dora, "dropout": config.dropout}.items():
        if value and parameters:
            raise UserError(
                f"model.lora.{name}: must be left out where adapters are in experts or beside them ({parameters[0]}; "
                f"model.lora.targets=[q_proj, v_proj] names others), got {str(value).lower()}"
            )


def adapted_layer_kinds(directory: str, config: LoraConfig) -> list[str]:
    """Last parts of the names of the layers that get adapters, such as q_proj, in the causal model of `directory`."""
    if config.targets != "all-linear":
        return sorted({target.rpartition(".")[2] for target in config.targets})
    with torch.device("meta"):
        config_of_model = AutoConfig.from_pretrained(configured_directory(directory), trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config_of_model, trust_remote_code=False)
    return sorted({name.rpartition(".")[2] for name in linear_layers(model)})


def _targets(model: PreTrainedModel, targets: list[str] | str) -> list[str]:
    layers = linear_layers(model) + expert_tensors(model)
    if isinstance(targets, str):
        return layers
    found = []
    for target in targets:
        matching = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not matching:
            kinds = sorted({name.rpartition(".")[2] for name in layers})
            near = difflib.get_close_matches(target.rpartition(".")[2], kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise UserError(
                f"model.lora.targets: must be linear layers other than the output embedding or a score head ({hint}), "
                f"got {target}"
            )
        found += matching
    return sorted(set(found))


def _task_type(model: PreTrainedModel) -> str:
    if model.get_output_embeddings() is not None:
        return "CAUSAL_LM"
    return "SEQ_CLS" if score_heads(model) else "FEATURE_EXTRACTION"


def freeze_parameters(model: PreTrainedModel, patterns: list[str]) -> None:
    """Stop training the parameters whose names match a pattern; `*` stands for anything.

    Raises:
        UserError: when a pattern matches no parameter, or nothing is left to train.
    """
    # Tied parameters are known by both of their names.
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matching = [name for name in named if fnmatchcase(name, pattern)]
        if not matching:
            near = difflib.get_close_matches(pattern, named, 1, cutoff=0.4)
            hint = f" (for example {near[0]})" if near else ""
            raise UserError(f"model.freeze: each pattern must match a parameter{hint}, got {pattern}")
        for name in matching:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(f"model.freeze: must leave something to train, got {patterns}")


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether `add_adapters` was applied."""
    return bool(adapted_layers(model) or adapted_experts(model))


@contextmanager
def adapters_disabled(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model is the one that the adapters were added to: the reference of a policy."""
    layers, experts = adapted_layers(model).values(), adapted_experts(model).values()

    def enable(enabled: bool) -> None:
        for layer in layers:
            layer.enable_adapters(enabled)
        for module in experts:
            module.adapters.enabled = enabled

    enable(False)
    try:
        yield
    finally:
        enable(True)


class AdaptedLayer(Protocol):
    """peft.tuners.lora.LoraLayer, as far as it is used: by the adapter's name, what it consists of."""

    scaling: Mapping[str, float]
    lora_A: Mapping[str, torch.nn.Linear]
    lora_B: Mapping[str, torch.nn.Linear]
    lora_magnitude_vector: Mapping[str, torch.nn.Linear]

    def get_base_layer(self) -> Any: ...  # Linear, or Conv1D of transformers
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...
    def enable_adapters(self, enabled: bool) -> None: ...


def _is_adapted(module: object) -> TypeGuard[AdaptedLayer]:
    return hasattr(module, "lora_A")


def adapted_layers(model: PreTrainedModel) -> dict[str, AdaptedLayer]:
    """Name -> peft.tuners.lora.LoraLayer, told by what it holds."""
    return {name: module for name, module in model.named_modules() if _is_adapted(module)}


@dataclass(frozen=True)
class _Merging:
    """A weight's adapters, and what makes one of them and the weight."""

    adapters: list[Parameter]
    merged: Callable[["MergeError | None"], torch.Tensor]


def _plain(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor, _Merging | None]]:
    """(plain name, tensor, how it is merged if it is adapted), in the order of the model without adapters."""
    merging: dict[int, _Merging] = {}
    for layer in adapted_layers(model).values():
        adapters = list(adapter_parameters(layer).values())
        merging[id(layer.get_base_layer().weight)] = _Merging(adapters, partial(_merged, layer))
    for module in adapted_experts(model).values():
        for name in module.adapters.names:
            adapters = list(adapter_of(module, name))
            merging[id(getattr(module, name))] = _Merging(adapters, partial(_merged_experts, module, name))
    added = {id(parameter) for each in merging.values() for parameter in each.adapters}
    for name, tensor in state_tensors(model):
        # By identity: PEFT renames what it wraps, and parameters may be tied.
        if id(tensor) not in added:
            yield name.replace(".base_layer.", "."), tensor, merging.get(id(tensor))


def adapter_parameters(layer: AdaptedLayer) -> dict[str, Parameter]:
    return {name: value for name, value in layer.named_parameters() if not name.startswith("base_layer.")}


def parameter_metas(model: PreTrainedModel) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Plain name, dtype and whole shape of what `plain_parameters` yields, in its order."""
    metas = []
    for name, tensor, _ in _plain(model):
        packed: Any = getattr(tensor, "quant_state", None)  # Of a weight in 4 bits.
        whole = packed or tensor
        metas.append((name, whole.dtype, tuple(getattr(tensor, "ds_shape", whole.shape))))
    return metas


@dataclass
class MergeError:
    """What rounding takes from the change that adapters make, over all weights that they were merged into."""

    change: float = 0.0
    """Sum of squares of the change."""
    lost: float = 0.0
    """Sum of squares of what of it is not in the rounded weights."""

    @property
    def value(self) -> float:
        """Norm of what is lost as a share of the norm of the change: 0 none, 1 all; 0 where nothing changes."""
        return math.sqrt(self.lost / self.change) if self.change else 0.0

    def add(self, weight: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> None:
        """Count a layer: its weight without adapters, the merged one in float32, and that in the weight's dtype."""
        # float64: squares of billions of small numbers, of which a float32 sum would stop growing.
        self.change += float((exact - weight).double().square().sum())
        self.lost += float((exact - rounded).double().square().sum())


def plain_parameters(
    model: PreTrainedModel, gather: Gather, *, merged: bool, error: MergeError | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole parameters, and the buffers that are kept with them, under their plain names, one at a time: with the
    adapters merged into them, or without.

    Merged: W + scaling B A; for DoRA (arXiv 2402.09353) m (W + scaling B A) / |W + scaling B A|; computed in float32
    and rounded once to the weight's dtype, which `error` counts. The model is not altered. Collective under ZeRO-3:
    every rank iterates to the end.
    """
    for name, tensor, merging in _plain(model):
        if not merged:
            merging = None
        with gather([tensor, *(merging.adapters if merging else [])]):
            # Not around the yield: the reader would compute without gradients, too.
            with torch.no_grad():
                whole = merging.merged(error) if merging else _dequantized(tensor)
            yield name, whole


def _merged(layer: AdaptedLayer, error: MergeError | None) -> torch.Tensor:
    weight = _dequantized(layer.get_base_layer().weight)
    transposed = isinstance(layer.get_base_layer(), Conv1D)
    change = layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    exact = weight.float() + (change.T if transposed else change)
    if ADAPTER in layer.lora_magnitude_vector:
        lengths = exact.norm(dim=0 if transposed else 1)  # of an output's weights
        factors = layer.lora_magnitude_vector[ADAPTER].weight.float() / lengths
        exact = exact * (factors if transposed else factors[:, None])
    rounded = exact.to(weight.dtype)
    if error is not None:
        error.add(weight, exact, rounded)
    return rounded


def _merged_experts(module: Any, name: str, error: MergeError | None) -> torch.Tensor:
    weight = getattr(module, name).detach()
    rounded = torch.empty_like(weight)
    for number, own in enumerate(weight):  # one by one: in float32, all of a layer would be twice as large again
        exact = merged_expert(module, name, number)
        rounded[number] = exact
        if error is not None:
            error.add(own, exact, rounded[number])
    return rounded


def _dequantized(tensor: torch.Tensor) -> torch.Tensor:
    if not hasattr(tensor, "quant_state"):
        return tensor.detach()
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(tensor)  # type: ignore[arg-type]


def quantization_config(model: ModelConfig) -> BitsAndBytesConfig | None:
    """`quantization_config` of `from_pretrained` for QLoRA (arXiv 2305.14314); None without `model.quantize`.

    Raises:
        UserError: without a GPU, or without bitsandbytes.
    """
    if model.quantize is None:
        return None
    needed = {"no GPU": torch.cuda.is_available(), "no bitsandbytes": importlib.util.find_spec("bitsandbytes")}
    lacking = [what for what, there in needed.items() if not there]
    if lacking:
        raise UserError(f"model.quantize: nf4 needs a GPU and the bitsandbytes package, got {' and '.join(lacking)}")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantize,
        bnb_4bit_use_double_quant=True,  # scales are quantised, too
        bnb_4bit_compute_dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[model.dtype],
    )


def unquantized_shell(model: PreTrainedModel) -> PreTrainedModel:
    """A model to write the merged weights of `model` with: itself, or for QLoRA its like without quantisation."""
    if not hasattr(model.config, "quantization_config"):
        return model
    settings = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    config = type(model.config).from_dict(settings)
    config.name_or_path = model.config.name_or_path
    with torch.device("meta"):
        return type(model)(config)
