"""TRL's own code, called without what its trainers set up: a model, data, processes.

A trainer is made without `__init__` and gets the attributes its loss reads. What TRL computes in the middle of a long
method, such as PPO's advantages, is not a function one could call: those lines are taken from the installed source and
run.
"""

import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class OneProcess:
    """What trainers ask of accelerate, for one process on the CPU."""

    device = torch.device("cpu")
    num_processes = 1
    sync_gradients = True
    is_main_process = False

    def gather(self, value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def trainer(kind: type, **attributes: Any) -> Any:
    """A trainer that can compute losses and nothing else."""
    made = kind.__new__(kind)
    common = {
        "accelerator": OneProcess(),
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
    }
    for name, value in (common | attributes).items():
        setattr(made, name, value)
    return made


def model(logits: Tensor) -> Callable[..., SimpleNamespace]:
    """A model that answers every batch with `logits`."""
    return lambda *_, **__: SimpleNamespace(logits=logits)


def run_lines(method: Callable[..., Any], first: str, until: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the lines of `method` from the one that starts with `first` up to, not including, the next with `until`.

    Args:
        method: a function of the peer.
        first, until: beginnings of lines, without indentation.
        names: local variables that the lines read.

    Returns:
        All local variables after the lines have run; globals are those of the method's module.
    """
    lines = inspect.getsource(method).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next(number for number in range(begin + 1, len(lines)) if lines[number].strip().startswith(until))
    variables = inspect.unwrap(method).__globals__ | names
    exec(textwrap.dedent("\n".join(lines[begin:end])), variables)
    return variables
