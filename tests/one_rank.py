"""DeepSpeed engines of one rank in the process of the tests: a process group, a small network, and its updates."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from actors.config import OptimizerConfig, TrainerConfig
from actors.rendezvous import listener, serve_store
from actors.train.engine import TrainingEngine, join_process_group

SMALL = OptimizerConfig(lr=0.05)
STAGES = (0, 1, 2, 3)
UPDATES = 4
STAGES_AND_DTYPES = [*((stage, "fp32") for stage in STAGES), *((stage, "bf16") for stage in STAGES[1:])]
"""All that a configuration may have."""


class Net(torch.nn.Module):
    """Two layers, a frozen one between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 3))
        self.model[1].requires_grad_(False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch)


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of one rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            patch.setenv(name, "0")
        # DeepSpeed keeps to the first process group of a process; another file may have had one.
        patch.setattr("deepspeed.comm.comm.cdb", None)
        for name in ("_WORLD_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP"):
            patch.setattr(f"deepspeed.utils.groups.{name}", None)
        join_process_group(serve_store(listener("127.0.0.1"), 1, 60), 0, 1, 60)
        yield
        dist.destroy_process_group()


def engine(stage: int, *, dtype: Any = "fp32", updates: int = UPDATES, **settings: Any) -> TrainingEngine:
    given: dict[str, Any] = {"optimizer": OptimizerConfig(name="sgd", lr=0.5, max_grad_norm=1e6)} | settings
    if stage:
        # DeepSpeed 0.19.8 sets 2 GB of addresses aside for each engine by default, and engines are never freed: beyond
        # the machine's memory this process could not fork (ENOMEM), as later tests do.
        given["deepspeed"] = {"zero_optimization": {"reduce_bucket_size": 1_000_000}} | given.get("deepspeed", {})
    module = Net() if dtype == "fp32" else Net().bfloat16()
    return TrainingEngine(module, TrainerConfig(zero_stage=stage, **given), dtype, updates)


def train(trained: TrainingEngine, update: int) -> None:
    torch.manual_seed(100 + update)
    batch = torch.randn(7, 6)
    dtype = next(trained.module.parameters()).dtype
    trained.backward((trained.forward(batch.to(dtype)).float() ** 2).sum() * 30, last=True)
    trained.step()


def weights(trained: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.parameters("model")}


def assert_equal(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, rtol: float = 0, atol: float = 0
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)
