"""A model's weights, as an export takes them."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from actors.models.lora import parameter_metas, plain_parameters
from actors.models.tensor_files import Meta


def weights_of(model: Any) -> tuple[Sequence[Meta], Iterator[tuple[str, torch.Tensor]]]:
    """Of one that is whole on this rank: what they are, and they themselves one at a time, adapters merged."""
    return parameter_metas(model), plain_parameters(model, lambda _: nullcontext(), merged=True)
