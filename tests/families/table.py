"""Tiny configurations of the causal language models of transformers, by short name."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.families.dense import DENSE
from tests.families.experts import EXPERTS
from tests.families.hybrids import HYBRIDS
from tests.families.ropes import ROPES

FAMILIES: dict[str, dict[str, Any]] = DENSE | ROPES | EXPERTS | HYBRIDS
"""Short name -> fields of config.json."""


def config_of(name: str) -> PretrainedConfig:
    """What transformers reads from a config.json of these fields."""
    return CONFIG_MAPPING[FAMILIES[name]["model_type"]].from_dict(dict(FAMILIES[name]))


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The model of plain transformers in fp32 and eval mode, with its sdpa attention where it has one, else eager.

    Parameters and saved buffers that start as a constant (biases, norms) get noise: a test shall see one left out.
    """
    config = config_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
        attention = "sdpa" if model_class._supports_sdpa else "eager"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def write(name: str, directory: Path, seed: int = 0) -> None:
    """Saves the model as transformers does: config.json and safetensors, no tokenizer."""
    build(name, seed).save_pretrained(directory)
