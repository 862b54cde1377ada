"""Models of the families with a head that gives one score, where transformers has one, and their scores one by one."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tests.families.table import CONSTANTS, config_of


def has_scores(name: str) -> bool:
    """Whether transformers has a sequence-classification model of the family."""
    return AutoModelForSequenceClassification._model_mapping.get(type(config_of(name)), None) is not None


def build_scores(name: str, seed: int = 0) -> PreTrainedModel:
    """The family's sequence-classification model of plain transformers, in fp32 and eval mode.

    Scores of texts differ by whole numbers. Eager attention where caps of scores would be left out without a word.
    """
    config = config_of(name)
    config.num_labels = 1
    kind: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    attention = "sdpa" if kind._supports_sdpa and not capped else "eager"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind._from_config(config, dtype=torch.float32, attn_implementation=attention)
        for key, tensor in model.state_dict().items():
            constant = tensor.is_floating_point() and bool((tensor == tensor.flatten()[0]).all())
            if constant and not key.endswith(CONSTANTS):
                tensor.add_(0.1 * torch.randn_like(tensor))
        if isinstance(head := getattr(model, "score", None), torch.nn.Linear):
            head.weight.normal_()
    return model.eval()


def score_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The model's own score of a sequence [L] without padding, a scalar: it reads it at the last token."""
    return model(input_ids=tokens[None], use_cache=False).logits[0, 0]
