"""The table of tiny models holds what its readers rely on."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families.composites import COMPOSITES
from tests.families.dense import DENSE
from tests.families.experts import EXPERTS
from tests.families.hybrids import HYBRIDS
from tests.families.latent import LATENTS
from tests.families.not_causal import CANNOT, NOT_CAUSAL
from tests.families.older import OLDER
from tests.families.ropes import ROPES
from tests.families.shapes import SHAPES
from tests.families.table import FAMILIES, build, config_of

LENGTH = 40
SAMPLE = (
    "qwen2 sliding",
    "gemma2",
    "longrope phi3",
    "gpt2",
    "bart",
    "gpt_oss",
    "deepseek_v32",
    "jamba",
    "qwen3_5 with vision",
)


def test_a_name_stands_for_one_model() -> None:
    tables = (DENSE, SHAPES, ROPES, OLDER, EXPERTS, LATENTS, HYBRIDS, COMPOSITES, NOT_CAUSAL)
    assert sum(map(len, tables)) == len(FAMILIES | NOT_CAUSAL)
    for fields in (FAMILIES | NOT_CAUSAL).values():
        assert json.loads(json.dumps(fields)) == fields


def test_every_causal_architecture_is_in_a_table() -> None:
    """A new version of transformers may bring more."""
    causal = {fields["model_type"] for fields in FAMILIES.values()}
    others = {fields["model_type"] for fields in NOT_CAUSAL.values()} - causal
    assert causal | others | CANNOT.keys() >= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert not causal & CANNOT.keys()
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() >= CANNOT.keys()


@pytest.mark.parametrize("table", [DENSE, SHAPES, ROPES, OLDER, EXPERTS, LATENTS, HYBRIDS, COMPOSITES])
def test_each_is_tiny_and_of_the_class_that_transformers_takes(table: dict[str, dict[str, object]]) -> None:
    for name in table:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_of(name))
        assert sum(parameter.numel() for parameter in model.parameters()) < 150_000, name
        whole = FAMILIES[name]["architectures"] != [type(model).__name__]
        assert not whole or name in COMPOSITES, name


def changed_before(name: str) -> float:
    """Largest change of a logit before the tokens that are changed, at several places."""
    model = build(name)
    tokens = torch.randint(3, 120, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids=tokens[:1], use_cache=False).logits
        assert torch.isfinite(logits).all()
        found = []
        for place in (4, 13, 22, 38):
            mixed = torch.cat((tokens[:1, :place], tokens[1:, place:]), dim=1)
            found.append((model(input_ids=mixed, use_cache=False).logits - logits)[0, :place].abs().max().item())
    return max(found)


@pytest.mark.parametrize("name", SAMPLE)
def test_causal_models_do_not_look_ahead(name: str) -> None:
    assert changed_before(name) < 1e-4


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_others_do(name: str) -> None:
    assert changed_before(name) > 1e-3


@pytest.mark.parametrize("name", SAMPLE)
def test_noise_leaves_no_tensor_constant(name: str) -> None:
    constant = [
        key
        for key, tensor in build(name).state_dict().items()
        if tensor.numel() > 1 and tensor.is_floating_point() and tensor.unique().numel() == 1
    ]
    assert constant == []


def test_one_seed_makes_one_model() -> None:
    first, again, other = (build("qwen3", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())
