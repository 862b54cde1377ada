"""What a file of `torch.save` names beside its data, read without loading anything: no torch, nothing is imported.

Such a file is a pickle, alone or in a zip beside the tensors' bytes; see `pickletools`. Whatever it names is called
when it is unpickled without care. Loading, which takes data only, decides; this says it sooner, and in a line.
"""

import contextlib
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_DATA = re.compile(
    r"""
    torch\.(cuda\.|sparse\.|cuda\.sparse\.)?\w*(Storage|Tensor) | torch\.storage\.\w*Storage
    | torch\.(Size|device|(b?float|u?int|complex|q?u?int|bits|bool)\w*)
    | torch\.(_utils|_tensor)\._rebuild_\w+ | torch\.nn\.parameter\.Parameter | torch\.serialization\._get_layout
    | collections\.(OrderedDict|Counter) | _codecs\.encode | (builtins|__builtin__)\.(set|bytearray|complex)
    """,
    re.VERBOSE,
)
_PICKLES = 5
"""In a file without a zip: a magic number, version, machine, the data, and the names of the tensors that follow."""


def foreign_names(path: Path) -> list[str]:
    """What a file names that no weights need, such as "posix.system", as far as it can be read."""
    found: set[str] = set()
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        for name in _names(path):
            found.add(name)
    return sorted(name for name in found if not _DATA.fullmatch(name))


def _names(path: Path) -> Iterator[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith("/data.pkl"):
                    with archive.open(member) as pickle:
                        yield from _names_in(pickle)
    else:
        with path.open("rb") as file:
            for _ in range(_PICKLES):
                yield from _names_in(file)


def _names_in(pickle: IO[bytes]) -> Iterator[str]:
    """What the next pickle of a stream names, `module.name` each."""
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(pickle):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL":  # of the two texts that came last, unless they were remembered from before
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
