"""Tensors in safetensors files, read and written one at a time: a model's files may be larger than any process.

The library itself maps a file into memory, and what was read of it counts as the process's; and it writes a file from
tensors that are all there. `actors.models.safetensors_header` says what such a file is.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open

from actors.files.own_files import create
from actors.models.safetensors_header import read_header, weight_files

Meta = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, dtype and shape. Example: ("lm_head.weight", torch.float32, (30, 64))."""

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class UnreadTensor:
    """A tensor in a file, read anew whenever it is asked for, as transformers asks its own: `tensor[...]`.

    One that this rank does not read has the right shape and any values: another rank will send them.
    """

    def __init__(self, file: Path, name: str, dtype: str, shape: tuple[int, ...], *, reads: bool) -> None:
        self.file, self.name, self.dtype, self.shape, self.reads = file, name, dtype, shape, reads

    def __getitem__(self, index: slice | tuple[slice, ...] | EllipsisType) -> torch.Tensor:
        if not self.reads and self.dtype in _DTYPES:
            return torch.empty(self.shape, dtype=_DTYPES[self.dtype])[index]
        return read_tensor(self.file, self.name)[index]


def unread_tensors(directory: str, *, reads: bool) -> dict[str, UnreadTensor] | None:
    """Every tensor of the model in a directory; None where its weights are no safetensors files (*.bin).

    Raises ValueError for files that are not whole, as `read_header` and `weight_files`.
    """
    files = weight_files(Path(directory))
    if not files or files[0].suffix != ".safetensors":
        return None
    return {
        name: UnreadTensor(file, name, found.dtype, found.shape, reads=reads)
        for file in files
        for name, found in read_header(file).items()
    }


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor, on CPU; nothing of the file stays in memory beside it."""
    with safe_open(file, framework="pt", backend="pread") as tensors:
        return tensors.get_tensor(name)


class _TensorFile:
    """A file with room for its tensors, which may be written in any order."""

    def __init__(self, path: Path, metas: Sequence[Meta], metadata: dict[str, str] | None) -> None:
        # The library's own order and alignment, for files that do not depend on how they were written.
        ordered = sorted(metas, key=lambda meta: (-meta[1].itemsize, meta[0]))
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        self.missing: dict[str, tuple[int, int]] = {}
        end = 0
        for name, dtype, shape in ordered:
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self.missing[name] = begin, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The tensors begin at a multiple of 8 bytes, as in the files of the library.
        text += b" " * (-len(text) % 8)
        self.start = 8 + len(text)
        self.stream = os.fdopen(create(path), "wb")
        self.stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        # Popped, so that a tensor that comes a second time fails.
        begin, end = self.missing.pop(name)
        # As bytes: numpy has no bfloat16.
        content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert len(content) == end - begin, f"{name} has {len(content)} bytes, not the {end - begin} of its dtype"
        self.stream.seek(self.start + begin)
        self.stream.write(content)


def write_tensors(
    files: dict[Path, Sequence[Meta]], tensors: Iterable[tuple[str, torch.Tensor]], metadata: dict[str, str] | None
) -> None:
    """Write safetensors files, path -> what is to be in it, from tensors that come one at a time, in any order.

    The bytes are those of `safetensors.torch.save_file`. Raises ValueError when tensors are missing.
    """
    opened = [_TensorFile(path, metas, metadata) for path, metas in files.items()]
    places = {name: file for file in opened for name in file.missing}
    try:
        for name, tensor in tensors:
            places[name].write(name, tensor)
    finally:
        for file in opened:
            file.stream.close()
    if missing := [name for file in opened for name in file.missing]:
        raise ValueError(f"nothing was given for {', '.join(missing[:3])} of {len(places)} tensors")
