"""A cheap, order-sensitive checksum of a tensor's bytes, the same on every device."""

import torch

_ROW = 4096
_SLICE = 64
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def checksum(tensor: torch.Tensor) -> int:
    """64-bit checksum of a tensor of any type and shape: one pass over its bytes.

    A sum of the bytes as integers, each weighed by its place, so that swapped values and blocks differ too.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    width = next(size for size in _WORDS if flat.numel() % size == 0)
    words = flat.view(_WORDS[width])
    places = torch.arange(1, _ROW + 1, dtype=torch.int64, device=words.device)
    total = words.numel()
    # By slices, so that intermediate results stay small; products wrap around at 64 bits.
    for number, piece in enumerate(words.split(_ROW * _SLICE)):
        whole = piece.numel() // _ROW * _ROW
        rows = (piece[:whole].view(-1, _ROW) * places).sum(dim=1)
        tail = piece[whole:] * places[: piece.numel() - whole]
        weights = torch.arange(1, len(rows) + 1, dtype=torch.int64, device=words.device) * 2 + 1
        total += (2 * number + 1) * int((rows * weights).sum()) + 3 * int(tail.sum())
    return total % 2**63
