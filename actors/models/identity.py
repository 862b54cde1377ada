"""What a model directory holds, as a short text: another one as soon as its weights are others. No torch.

A model exported anew under the same path has the same names, shapes and sizes: its numbers must be looked at. All of
them would take minutes for a large model; an optimizer's update changes numbers all over every tensor, so that a few
kilobytes of each tell, in 12 MB for 70 billion parameters. Small files are read whole. Times of files say nothing: a
copy of a model is the same model.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from actors.models.hub_cache import cached_snapshot, split_commit
from actors.models.safetensors_header import weight_files

_WHOLE = 2**24
"""Bytes of weights that are read whole."""
_PIECES, _PIECE = 4, 4096
"""Places of a tensor that are read, and bytes of each."""
_STRIDES = 1024
"""Places of a file of another format that are read."""


def model_identity(path: str, revision: str | None = None) -> str | None:
    """`commit ...` of a model of the hub, `weights ...` of a local directory; None where neither is on this machine.

    Example: model_identity("outputs/sft/export") == "weights 5f0c1b7a93d2e846"
    """
    if not Path(path).is_dir():
        name, commit = split_commit(path)
        snapshot = cached_snapshot(name, commit or revision)
        return f"commit {snapshot.name}" if snapshot else None
    directory, digest = Path(path), hashlib.sha256()
    try:
        config = directory / "config.json"
        # Settings, too: the same weights with another number of heads are another model.
        digest.update(config.read_bytes() if config.is_file() else b"")
        for file in weight_files(directory):
            # Names and sizes, too: pieces alone do not say where they are from.
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            for piece in _pieces(file):
                digest.update(piece)
    except (OSError, ValueError):  # what is wrong with it, the checks say
        return None
    return f"weights {digest.hexdigest()[:16]}"


def _pieces(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE:
            yield stream.read()
            return
        for begin, end in _spans(file, size):
            yield os.pread(stream.fileno(), end - begin, begin)


def _spans(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """Bytes of a large file that are read: its header and some of each tensor, or some all over it and its end, where
    an archive has checksums of all that it holds."""
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        yield 0, 8 + length
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in tensor["data_offsets"])
                yield from _spread(begin, end, _PIECES)
        return
    yield from _spread(0, size, _STRIDES)
    yield max(0, size - 2**20), size  # the directory of a zip, with its checksums


def _spread(begin: int, end: int, places: int) -> Iterator[tuple[int, int]]:
    """Pieces at equal distances, the last one at the end; all bytes where these are few."""
    if end - begin <= places * _PIECE:
        yield begin, end
        return
    for place in range(places):
        start = begin + (end - begin - _PIECE) * place // (places - 1)
        yield start, start + _PIECE
