"""Models in training compute what they compute in evaluation: whatever their settings drop, shake or cut."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from actors.config import UserError
from actors.models.quiet import quiet_config, quiet_routers
from tests.families.table import FAMILIES, config_of
from tests.test_families import REFUSED

TOKENS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(0))
NOISY = (
    "mixtral",
    "phimoe",
    "dbrx",
    "minimax",
    "minimax_m2",
    "opt",
    "xglm",
    "biogpt",
    "gemma3n text",
    "gpt2",
    "falcon",
)
"""Of every kind of noise, families that have it: at routers, layers that are left out, weights that are cut."""


def noisy(name: str) -> PretrainedConfig:
    """A family's configuration with all that drops something or shakes it at work."""
    config = config_of(name)
    text: Any = config.get_text_config()
    parts = [config, text, *(value for value in vars(text).values() if isinstance(value, PretrainedConfig))]
    for part in parts:
        for field, value in part.to_dict().items():
            if isinstance(value, float) and any(word in field for word in ("drop", "jitter", "coef_clip")):
                setattr(part, field, 0.3)
            if field == "moe_jitter_eps":  # which is None by default
                setattr(part, field, 0.3)
    return config


def outputs(config: PretrainedConfig, *, quiet: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in training and in evaluation."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if quiet:
        quiet_routers(model)
    found = []
    for training in (True, False, True):  # also after an evaluation
        model.train(training)
        with torch.no_grad():
            found.append(model(TOKENS, use_cache=False).logits)
    assert not quiet or torch.equal(found[0], found[2])
    return found[0], found[1]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_training_is_evaluation(name: str) -> None:
    trained, evaluated = outputs(quiet_config(noisy(name)), quiet=True)
    torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NOISY)
def test_without_it_they_differ(name: str) -> None:
    assert not torch.allclose(*outputs(noisy(name), quiet=False), rtol=1e-3, atol=1e-3)


def test_a_family_whose_experts_are_chosen_by_other_tokens_is_refused() -> None:
    """transformers 5.19 reads the logits of a token's experts as those of two tokens."""
    config: Any = config_of("doge")
    quiet_config(config)
    config.is_moe = True
    with pytest.raises(UserError, match=r"^model\.path: doge cannot be trained with is_moe, .* got is_moe=true$"):
        quiet_config(config)
