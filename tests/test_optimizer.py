"""How settings become an optimizer and DeepSpeed's configuration; what an engine evaluates, and what it adds up."""

import math
from itertools import product
from typing import Any

import pytest
import torch

from actors.config import FrozenGroupConfig, OptimizerConfig, TrainerConfig
from actors.train.engine import (
    TrainingEngine,
    deepspeed_config,
    inference_module,
)
from actors.train.optimizer import new_optimizer, trained_groups
from actors.train.schedule import rate_schedule
from tests.one_rank import alone  # noqa: F401

pytestmark = pytest.mark.usefixtures("alone")

BUCKETS: dict[str, Any] = {"zero_optimization": {"reduce_bucket_size": 1_000_000}}
"""DeepSpeed sets 2 GB of addresses aside for each engine without it."""


class Dropping(torch.nn.Module):
    """Two layers with dropout between them, a norm and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.Dropout(0.5), torch.nn.LayerNorm(16), torch.nn.Linear(16, 3)
        )
        self.model[0].requires_grad_(False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch)


def engine(module: torch.nn.Module, stage: Any, dtype: Any = "fp32", **optimizer: Any) -> TrainingEngine:
    settings = OptimizerConfig.model_validate({"name": "sgd", "lr": 0.5, "max_grad_norm": 1e6} | optimizer)
    group = TrainerConfig(zero_stage=stage, optimizer=settings, deepspeed=BUCKETS if stage else {})
    return TrainingEngine(module, group, dtype, 4)


NAMES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}, {"amsgrad": False}),
    "adam": (torch.optim.Adam, {"betas": (0.7, 0.9), "eps": 1e-5}, {"decoupled_weight_decay": False}),
    "sgd": (torch.optim.SGD, {"weight_decay": 0.2}, {"momentum": 0, "nesterov": False, "dampening": 0}),
}
"""Name -> its class, settings away from their defaults, and what is left as torch has it."""


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_gets_all_of_its_settings(name: str) -> None:
    """Matrices decay; biases and norms do not; what is frozen is in neither group."""
    kind, settings, fixed = NAMES[name]
    module = Dropping()
    made = new_optimizer(trained_groups(module), OptimizerConfig.model_validate({"name": name, "lr": 0.3} | settings))
    assert type(made) is kind
    norm, last = module.model[2], module.model[3]
    matrices, vectors = made.param_groups
    assert [id(each) for each in matrices["params"]] == [id(last.weight)]
    assert [id(each) for each in vectors["params"]] == [id(each) for each in (norm.weight, norm.bias, last.bias)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (settings.get("weight_decay", 0), 0)
    wanted = {each: value for each, value in settings.items() if each != "weight_decay"} | fixed | {"lr": 0.3}
    for group in made.param_groups:
        assert {each: group[each] for each in wanted} == wanted


def test_a_group_without_parameters_is_none() -> None:
    """Adapters are matrices only; DeepSpeed fails at an empty group."""
    module = Dropping()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    made = new_optimizer(trained_groups(module), OptimizerConfig())
    assert [len(group["params"]) for group in made.param_groups] == [2]
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    (group,) = new_optimizer(trained_groups(module), OptimizerConfig(weight_decay=0.5)).param_groups
    assert (len(group["params"]), group["weight_decay"]) == (4, 0)


def test_the_schedule_multiplies_the_rate_of_every_group() -> None:
    """Over all updates of the run, whose number decides where a decay ends."""
    optimizer = new_optimizer(trained_groups(Dropping()), OptimizerConfig(lr=0.3))
    schedule = rate_schedule(optimizer, OptimizerConfig(lr=0.3, schedule="linear", warmup_updates=4), 6)
    found = []
    for _ in range(6):
        found += [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()
    rates = [0.075, 0.15, 0.225, 0.3, 0.3, 0.15]
    assert found == pytest.approx([rate for rate in rates for _ in range(2)])


COMMON: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 10**9,
    "wall_clock_breakdown": False,
}
IN_FLOAT32 = {"bf16": {"enabled": False}}
IN_BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
WHOLE = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
PASSED = {
    "zero_optimization": {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 10},
    "wall_clock_breakdown": True,
    "comms_logger": {"enabled": True},
}


@pytest.mark.parametrize(
    ("settings", "dtype", "zero", "others"),
    [
        ({}, "fp32", {"stage": 0}, IN_FLOAT32),
        ({}, "bf16", {"stage": 0}, IN_BF16),
        ({"zero_stage": 1}, "fp32", {"stage": 1}, IN_FLOAT32),
        (
            {"zero_stage": 2, "offload_optimizer": True},
            "bf16",
            {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            IN_BF16,
        ),
        (
            {"zero_stage": 3, "offload_parameters": True},
            "fp32",
            {"stage": 3, "offload_param": {"device": "cpu"}, **WHOLE},
            IN_FLOAT32,
        ),
        (
            {"zero_stage": 3, "deepspeed": PASSED},
            "bf16",
            {"stage": 3, **WHOLE, **PASSED["zero_optimization"]},
            IN_BF16 | {"wall_clock_breakdown": True, "comms_logger": {"enabled": True}},
        ),
    ],
)
def test_deepspeed_is_configured_so_and_by_nothing_else(
    settings: dict[str, Any], dtype: Any, zero: dict[str, Any], others: dict[str, Any]
) -> None:
    """In bf16, gradients of micro-batches are added up in float32; settings that are passed on take precedence."""
    found = deepspeed_config(TrainerConfig.model_validate(settings), dtype)
    assert found == COMMON | others | {"zero_optimization": {"contiguous_gradients": True, **zero}}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_evaluation_drops_nothing_and_training_goes_on_dropping(stage: int) -> None:
    """Twice the same, that of the module in evaluation mode, without a graph."""
    trained, plain = engine(Dropping(), stage), Dropping().eval()
    batch = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain(batch)
    for _ in range(2):
        found = trained.evaluate(batch)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert not found.requires_grad
        assert all(module.training for module in trained.module.modules())
    one, other = trained.forward(batch), trained.forward(batch)
    assert one.requires_grad and not torch.equal(one, other)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_frozen_model_drops_nothing_and_learns_nothing(stage: Any) -> None:
    module, plain = Dropping(), Dropping().eval()
    held = inference_module(module, FrozenGroupConfig(zero_stage=stage), "fp32")
    assert not any(each.training for each in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    batch = torch.ones(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(held(batch), plain(batch), rtol=1e-6, atol=1e-6)


class Weights(torch.nn.Module):
    """Answers with its weights, times what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2, 2))])

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        return self.model[0] * factor


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), *product((1, 2, 3), ("fp32", "bf16"))])
def test_the_gradients_of_all_micro_batches_are_added_up(stage: int, dtype: str) -> None:
    """Then forgotten with the update; the norm is that of their sum, before clipping. In bf16 alone, 256 + 1 is 256."""
    module = Weights() if dtype == "fp32" else Weights().bfloat16()
    trained = engine(module, stage, dtype, lr=0.5, max_grad_norm=257.0)
    rounding = 1e-5 if dtype == "fp32" else 2**-8  # of the weights that are read; they are trained in float32
    for update in range(2):
        factors = [256.0, 1.0]  # their sum is no bf16
        for index, factor in enumerate(factors):
            gradient = torch.full((2, 2), factor, dtype=module.model[0].dtype)
            trained.backward(trained.forward(gradient).sum(), last=index == len(factors) - 1)
        assert trained.step() == pytest.approx(2 * 257)  # of four weights
        ((_, weight),) = trained.parameters("model")
        # Half of a step: the clip.
        torch.testing.assert_close(
            weight.float(), torch.full((2, 2), -0.25 * 257 * (update + 1)), rtol=rounding, atol=0
        )


@pytest.mark.parametrize("stage", [0, 1])
def test_the_learning_rate_is_that_of_the_next_update(stage: int) -> None:
    trained = engine(Weights(), stage, lr=0.4, schedule="linear", warmup_updates=2)
    rates = []
    for _ in range(4):
        rates.append(trained.learning_rate)
        trained.backward(trained.forward(torch.ones(2, 2)).sum(), last=True)
        trained.step()
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.2])
    moved = -next(trained.parameters("model"))[1][0, 0].item()
    assert moved == pytest.approx(sum(rates)) and math.isfinite(moved)
