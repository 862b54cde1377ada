"""What `model.dtype` is to PyTorch."""

import torch

from actors.config import Dtype

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
