"""What a file of `torch.save` names beside its data, read without loading anything: no torch, nothing is imported.

Such a file is a pickle, alone or in a zip beside the tensors' bytes; see `pickletools`. Whatever it names is called
when it is unpickled without care. Loading, which takes data only, decides; this says it sooner, and in a line.
"""

import contextlib
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from actors.failure import reason_of

_DATA = re.compile(
    r"""
    torch\.(cuda\.|sparse\.|cuda\.sparse\.)?\w*(Storage|Tensor) | torch\.storage\.\w*Storage
    | torch\.(Size|device|(b?float|u?int|complex|q?u?int|bits|bool)\w*)
    | torch\.(_utils|_tensor)\._rebuild_\w+ | torch\.nn\.parameter\.Parameter | torch\.serialization\._get_layout
    | collections\.(OrderedDict|Counter) | _codecs\.encode | (builtins|__builtin__)\.(set|bytearray|complex)
    """,
    re.VERBOSE,
)
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error)
"""What reading a zip raises beside ValueError where it is damaged, encrypted, or packed in an unknown way."""
_MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of torch.save without a zip begins with."""
_PICKLES = 5
"""In a file without a zip: a magic number, version, machine, the data, and the names of the tensors that follow."""


def foreign_names(path: Path) -> list[str]:
    """What a file names that no weights need, such as "posix.system", as far as it can be read."""
    found: set[str] = set()
    # Loading will say what is wrong with a file that cannot be read; nothing of it has run by then.
    with contextlib.suppress(OSError, ValueError, *_DAMAGED):
        for code, text in _named(path):
            if code:
                found.add(text)
    return sorted(name for name in found if not _DATA.fullmatch(name))


def texts_in(path: Path) -> set[str]:
    """Every text among a file's data, and so the names of its tensors.

    Raises:
        ValueError: it is no whole file of torch.save; what is wrong, without the file's name.
    """
    try:
        return {text for code, text in _named(path, strict=True) if not code}
    except _DAMAGED as error:
        raise ValueError(f"cannot be read ({reason_of(error)})") from None


def _named(path: Path, *, strict: bool = False) -> Iterator[tuple[bool, str]]:
    """(True, `module.name` of code) and (False, text), in the order of the file; `strict`: raise ValueError for what
    torch.save does not write."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.namelist() if member.endswith("/data.pkl")]
            if strict and len(members) != 1:
                raise ValueError("is a zip, but not one of torch.save (which has one data.pkl)")
            for member in members:
                with archive.open(member) as pickle:
                    yield from _named_in(pickle)
        return
    with path.open("rb") as file:
        if strict and _first_number(file) != _MAGIC:
            raise ValueError("is a pickle, but not one of torch.save")
        # With strict, the first one was read to see what the file is.
        for _ in range(_PICKLES - strict):
            yield from _named_in(file)


def _first_number(file: IO[bytes]) -> int | None:
    """What the first pickle of a stream holds, if it is a number."""
    numbers = [argument for code, argument, _ in pickletools.genops(file) if code.name.startswith("LONG")]
    return numbers[0] if numbers else None


def _named_in(pickle: IO[bytes]) -> Iterator[tuple[bool, str]]:
    """As `_named`, of the next pickle of a stream."""
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(pickle):
        if code.name in ("GLOBAL", "INST"):
            yield True, str(argument).replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL":  # of the two texts that came last, unless they were remembered from before
            yield True, ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
            yield False, argument
