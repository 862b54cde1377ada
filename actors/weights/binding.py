"""Which layers of a vLLM worker really compute with the adapter that was sent.

vLLM leaves out, without an error, what it finds no layer for; and a layer may keep what it had before. So the values
that layers hold for the adapter are compared with the adapter's file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name

from actors.weights.checksum import checksum

ADAPTER_ID = 1
"""vLLM's number of the only adapter."""


def bound_checksums(model_runner: Any, directory: str) -> dict[str, int]:
    """Checksum of each tensor of a PEFT directory which a layer of this worker holds as it should."""
    manager = model_runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    helper = PEFTHelper.from_local_dir(directory, None)
    tensors = load_file(Path(directory) / "adapter_model.safetensors")
    held = dict(_held(manager))
    bound = {}
    for name, tensor in tensors.items():
        module, is_a = parse_fine_tuned_lora_name(name, mapper and mapper.get_rename_mapper())
        # vLLM multiplies B by the scaling once, while it loads it.
        scaling = 1.0 if is_a else helper.vllm_lora_scaling_factor
        if (module, is_a) in held and _holds(held[module, is_a], tensor, scaling):
            bound[name] = checksum(tensor)
    return bound


def _held(manager: Any) -> Iterator[tuple[tuple[str, bool], torch.Tensor]]:
    """((layer as the trainer names it, whether it is A), buffer), also for the parts of packed layers."""
    slot = manager.lora_index_to_id.index(ADAPTER_ID)
    for name, module in manager.modules.items():
        for index, part in enumerate(manager.packed_modules.get(name, [name])):
            for is_a, stacked in ((True, module.lora_a_stacked), (False, module.lora_b_stacked)):
                if index < len(stacked):
                    yield (part, is_a), stacked[index][slot, 0]


def _holds(buffer: torch.Tensor, tensor: torch.Tensor, scaling: float) -> bool:
    # Cast, then scaled, as vLLM does it: the comparison is exact.
    expected = tensor.to(device=buffer.device, dtype=buffer.dtype) * scaling
    rows, columns = expected.shape
    if len(buffer) < rows or buffer.shape[1] < columns:
        # Tensor parallelism leaves each worker a part, whose place is vLLM's affair.
        return bool(buffer.any()) or not expected.any()
    # Buffers have room for a larger rank.
    return torch.equal(buffer[:rows, :columns], expected) and not buffer[rows:].any() and not buffer[:, columns:].any()
