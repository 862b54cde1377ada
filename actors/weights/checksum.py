"""A cheap, order-sensitive checksum of a tensor's bytes, the same on every device, and one digest of many of them."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_ROW = 4096
_ROWS_AT_ONCE = 64
_SMALL = 2**16
_PLACES = np.arange(1, _ROW + 1)
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def checksum(tensor: Tensor) -> int:
    """64-bit checksum of a tensor of any type and shape: one pass over its bytes.

    The bytes as integers, in rows of 4096: the sum over rows r and places k of (2 r + 1) (k + 1) times the integer, so
    that swapped values and swapped rows differ too.
    """
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    # The wider the words, the fewer there are to add up.
    width = next(size for size in _WORDS if raw.numel() % size == 0)
    words = raw.view(_WORDS[width])
    small = words.device.type == "cpu" and len(words) <= _SMALL
    sums = _row_sums_small(words) if small else _row_sums(words)
    # The length is in it, as zeros at the end add nothing; the factors are odd, so that no row is lost modulo 2^64.
    total = len(words) + sum((2 * row + 1) * value for row, value in enumerate(sums))
    return total % 2**64


def digest(checksums: Mapping[str, int]) -> str:
    """One SHA-256 of the names and checksums of tensors, in whatever order they came; empty of none.

    It is what a worker process says instead of all names: a model has hundreds, and there are many such processes.
    """
    if not checksums:
        return ""
    lines = "".join(f"{name}\0{value}\n" for name, value in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _row_sums_small(words: Tensor) -> list[int]:
    # numpy takes less than half the time of torch's operations, which only pay with all cores.
    data = words.numpy()
    whole = len(data) // _ROW * _ROW
    return [*(data[:whole].reshape(-1, _ROW) @ _PLACES).tolist(), int(data[whole:] @ _PLACES[: len(data) - whole])]


def _row_sums(words: Tensor) -> list[int]:
    places = torch.from_numpy(_PLACES).to(words.device)
    whole = len(words) // _ROW * _ROW
    # Some rows at a time, so that intermediate results stay small; sums wrap around at 64 bits.
    pieces = words[:whole].view(-1, _ROW).split(_ROWS_AT_ONCE)
    sums = [(piece * places).sum(dim=1) for piece in pieces] + [
        (words[whole:] * places[: len(words) - whole]).sum()[None]
    ]
    return torch.cat(sums).tolist()
