"""Tiny models of the causal architectures of transformers, by short name."""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.families.composites import COMPOSITES
from tests.families.dense import DENSE
from tests.families.experts import EXPERTS
from tests.families.hybrids import HYBRIDS
from tests.families.latent import LATENTS
from tests.families.not_causal import NOT_CAUSAL
from tests.families.older import OLDER
from tests.families.ropes import ROPES
from tests.families.shapes import SHAPES

FAMILIES: dict[str, dict[str, Any]] = DENSE | SHAPES | ROPES | OLDER | EXPERTS | LATENTS | HYBRIDS | COMPOSITES
"""Short name -> fields of config.json."""
EAGER = ("gemma2", "vaultgemma")
"""Types whose caps of attention scores are left out, without a word, by the sdpa attention of transformers."""
CONSTANTS = (".act_fn.beta", ".act_fn.eps")
"""Ends of the names of saved buffers that are constants."""


def config_of(name: str) -> PretrainedConfig:
    """What transformers reads from a config.json of these fields; the name is one of FAMILIES or NOT_CAUSAL."""
    fields = deepcopy((FAMILIES | NOT_CAUSAL)[name])
    return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The model of plain transformers in fp32 and eval mode, with its sdpa attention where that is right, else eager.

    A composite's text model is what `AutoModelForCausalLM` loads of the whole.
    """
    model = _whole(name, seed)
    if type(model) is AutoModelForCausalLM._model_mapping[type(model.config)]:
        return model
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        attention = {"attn_implementation": model.config._attn_implementation}
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **attention)


def write(name: str, directory: Path, seed: int = 0) -> None:
    """Saves the model as transformers does: config.json and safetensors, no tokenizer. A composite is saved whole."""
    _whole(name, seed).save_pretrained(directory)


def _whole(name: str, seed: int) -> PreTrainedModel:
    """The model that its config.json names.

    Parameters and saved buffers that start as a constant (biases, norms) get noise: a test shall see one left out.
    """
    config: Any = config_of(name)
    model_class = getattr(transformers, config.architectures[0])
    attention = "sdpa" if model_class._supports_sdpa and config.model_type not in EAGER else "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class._from_config(config, dtype=torch.float32, attn_implementation=attention)
        for key, tensor in model.state_dict().items():
            if (
                tensor.is_floating_point()
                and not key.endswith(CONSTANTS)
                and bool((tensor == tensor.flatten()[0]).all())
            ):
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()
