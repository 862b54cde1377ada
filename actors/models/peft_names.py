"""Names of layers and of experts that PEFT takes for others: what it is told, so that it adapts what is meant.

It takes some names of layers for those of experts, as they were before transformers 5 (gate_proj and others, also of
layers beside the experts), and of these adapts the experts' tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


@contextmanager
def without_conversion() -> Iterator[None]:
    """Within it, PEFT adapts the layers that it is told."""
    from peft.utils import transformers_weight_conversion as module

    before = module.convert_peft_config_for_transformers
    module.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        module.convert_peft_config_for_transformers = before


def names_in_directory(model: PreTrainedModel, settings: Any) -> dict[str, Any]:
    """What PEFT must find in a directory to load adapters as they are: target_modules and target_parameters.

    By the names of their weights, layers that it would take for experts stay what they are.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for kind in {name.rpartition(".")[2] for name in settings.target_modules}:
        alone = PeftLoraConfig(target_modules=[kind])
        try:
            convert_peft_config_for_transformers(alone, model, None)
        except ValueError:  # one of two that were joined, without the other
            taken.add(kind)
        if alone.target_modules != {kind}:
            taken.add(kind)
    parameters = [f"{name}.weight" for name in settings.target_modules if name.rpartition(".")[2] in taken]
    modules = [name for name in settings.target_modules if name.rpartition(".")[2] not in taken]
    parameters = sorted([*parameters, *(settings.target_parameters or [])])
    return {"target_modules": sorted(modules), "target_parameters": parameters or None}
