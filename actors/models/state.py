"""What a model consists of: its parameters, and the buffers that are kept with them, such as a router's corrections."""

from collections.abc import Iterator

import torch


def state_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of all that a model's state dict has, each tensor once, under its first name; as it is, not
    detached."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        kept = {name: each for name, each in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for name, tensor in [*module._parameters.items(), *kept.items()]:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}" if prefix else name, tensor
