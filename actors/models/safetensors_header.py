"""What a directory's weights are, read from the headers of their files: names, dtypes and shapes. No torch.

A safetensors file is 8 bytes of little-endian length, that many bytes of JSON, name -> {dtype, shape, data_offsets},
and the tensors' bytes (https://github.com/huggingface/safetensors#format). An index names the file of each tensor.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from actors.failure import reason_of

DTYPE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | {
    name: bits
    for bits, names in {
        8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16: "U16 I16 F16 BF16",
        32: "U32 I32 F32",
        64: "U64 I64 F64 C64",
    }.items()
    for name in names.split()
}
"""Name of a dtype in a header -> bits of one number."""
_MOST_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYER = re.compile(r"(.*?(?:^|\.)(?:layers|layer|h|blocks|block))\.(\d{1,6})\.")
_SINGLE_BIN, _INDEX_BIN = "pytorch_model.bin", "pytorch_model.bin.index.json"


class StoredTensor(NamedTuple):
    """Of one tensor in a file. Example: StoredTensor("F32", (64, 16), "model.safetensors")."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def not_a_file(path: Path) -> str | None:
    """What stands at `path` instead of a file, in words; None for a file, and where there is nothing."""
    if path.is_file() or not os.path.lexists(path):
        return None
    if path.is_dir():
        return "a directory"
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "neither file nor directory"


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads a model from; [] when the directory holds no weights.

    Raises:
        ValueError: there are weights, but not all, or none of the names that are looked for.
    """
    # In the order of transformers: safetensors before pickles, a single file before an index.
    for single, index in ((_SINGLE, _INDEX), (_SINGLE_BIN, _INDEX_BIN)):
        for name in (single, index):
            if what := not_a_file(directory / name):
                raise ValueError(f"{name} must be a file, is {what}")
        if (directory / single).is_file():
            return [directory / single]
        if (directory / index).is_file():
            names = sorted(set(read_index(directory / index).values()))
            if missing := [name for name in names if not (directory / name).is_file()]:
                raise ValueError(f"{missing[0]} is not there, one of the {len(names)} files that {index} names")
            return [directory / name for name in names]
    if (directory / "adapter_config.json").is_file():
        raise ValueError("it holds a PEFT adapter without its base; `tandem export` makes the whole model of it")
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
    # What the Trainer of transformers leaves there is no model.
    models = [name for name in others if name not in ("training_args.bin", "optimizer.bin", "scheduler.bin")]
    if models:
        raise ValueError(f"there is neither {_SINGLE} nor {_INDEX}, only {models[0]}")
    return []


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it; raises ValueError for an index that is not one."""
    values = parse_json(_read(path), path.name)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{path.name} is no index (weight_map must give the file of each tensor)")
    return places


def stored_tensors(directory: Path) -> dict[str, StoredTensor] | None:
    """Every tensor that a model is loaded from, by its name; None for files of another format (*.bin), which are only
    looked at from outside.

    Raises:
        ValueError: what is wrong with which file: cut off, no safetensors file, a tensor twice or not where the index
            says, or none at all.
    """
    found: dict[str, StoredTensor] = {}
    files = weight_files(directory)
    if files and files[0].suffix == ".bin":
        for file in files:
            _texts_of_pickle(file)
        return None
    for file in files:
        for name, tensor in read_header(file).items():
            if name in found:
                raise ValueError(f"{file.name} and {found[name].file} both hold the tensor {name}")
            found[name] = tensor
    if not found:
        raise ValueError("there are no weights (model.safetensors or pytorch_model.bin)")
    if not (directory / _SINGLE).is_file():
        for name, place in read_index(directory / _INDEX).items():
            if name not in found or found[name].file != place:
                raise ValueError(f"{place} does not hold the tensor {name}, as {_INDEX} says")
    return found


def pickled_names(directory: Path) -> set[str]:
    """What the tensors of *.bin files are called, among other texts that these hold; raises ValueError as
    `stored_tensors`."""
    return {text for file in weight_files(directory) if file.suffix == ".bin" for text in _texts_of_pickle(file)}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
        ValueError: it is no such file, cut off, or its header contradicts its size.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            # Before reading: the length of a file that is none of these can be any number.
            if len(start) < 8 or length > size - 8 or length > _MOST_HEADER_BYTES:
                raise ValueError(_not_safetensors(path, start + stream.read(200), size, length))
            content = stream.read(length)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None
    if content[:1] != b"{":
        raise ValueError(_not_safetensors(path, start + content[:200], size, length))
    header = parse_json(content, f"the header of {path.name}")
    assert isinstance(header, dict), "it begins with a brace"
    # Free texts under the name that no tensor can have.
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, value) for name, value in header.items()}
    _require_cover(path, [value["data_offsets"] for value in header.values()], size - 8 - length)
    return tensors


def _tensor(path: Path, name: str, value: Any) -> StoredTensor:
    where = f"{path.name}: the header's entry of {_short(name)}"
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where} must have dtype, shape and data_offsets") from None
    if not isinstance(shape, list) or not all(_is_count(number) for number in [*shape, begin, end]):
        raise ValueError(f"{where} must have counts for shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{where} has the unknown dtype {_short(dtype)}")
    if (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise ValueError(f"{where} has {end - begin} bytes for {dtype} of shape {shape}")
    return StoredTensor(dtype, tuple(shape), path.name)


def _require_cover(path: Path, spans: list[list[int]], data: int) -> None:
    """Raise ValueError unless the tensors fill the file's data without gap or overlap, as the format demands."""
    reached = 0
    # No gap and no overlap: bytes that belong to no tensor could be anything.
    for begin, end in sorted(spans):
        if begin != reached:
            raise ValueError(f"{path.name}: tensors {'overlap' if begin < reached else 'leave a gap'} at byte {begin}")
        reached = end
    if reached > data:
        raise ValueError(f"{path.name} is cut off: it holds {data} of the {reached} bytes of its tensors")
    if reached < data:
        raise ValueError(f"{path.name} has {data - reached} bytes behind its tensors")


def _not_safetensors(path: Path, start: bytes, size: int, length: int) -> str:
    """What a file is that is no whole safetensors file."""
    if what := what_instead(start, size):
        return f"{path.name} {what}"
    if 0 < length <= _MOST_HEADER_BYTES and start[8:9] == b"{":
        return f"{path.name} is cut off: it ends within its header"
    return f"{path.name} is no safetensors file (its header would have {length} bytes, the file has {size})"


def what_instead(start: bytes, size: int) -> str | None:
    """What a file of this beginning and size is instead of what its name says; None where that does not show."""
    text = start.lstrip().lower()
    if not size:
        return "is empty"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git-LFS pointer, not the file itself (`git lfs pull` loads it)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the file itself"
    if not start.strip(b"\0"):
        return "has only zeros where its header should be"
    return None


def _texts_of_pickle(path: Path) -> set[str]:
    """The names of the tensors of a *.bin, and all other texts in it; raises ValueError for one that torch cannot read,
    and for one that names more than tensors."""
    with path.open("rb") as stream:
        start = stream.read(200)
    if what := what_instead(start, len(start)):
        raise ValueError(f"{path.name} {what}")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"{path.name} is no file of torch.save")
    if start.startswith(b"PK"):  # a zip, as torch.save writes today
        import zipfile

        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path.name} is cut off")
    from actors.files.pickled import foreign_names, texts_in

    if names := foreign_names(path):
        raise ValueError(f"{path.name} holds more than data: {_short(', '.join(names[:3]))}")
    try:
        return texts_in(path)
    except ValueError as error:
        raise ValueError(f"{path.name} {_short(str(error))}") from None


def layer_count(names: Iterable[str]) -> int | None:
    """Layers that the tensors are of; None where they are of several stacks, or of none with a name that is known."""
    counts: dict[str, int] = {}
    for name in names:
        if match := _LAYER.match(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return next(iter(counts.values())) if len(counts) == 1 else None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_HEADER_BYTES:
            raise ValueError(f"{path.name} is too large ({path.stat().st_size} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None


def parse_json(content: bytes, what: str) -> Any:
    """JSON without names given twice; raises ValueError with `what`, in one line."""
    if kind := what_instead(content[:200], len(content)):
        raise ValueError(f"{what} {kind}")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8 text") from None
    except _TwiceError as error:
        raise ValueError(f"{what} gives {error} twice") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON ({reason_of(error)})") from None


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(_short(next(name for name, _ in pairs if name in seen or seen.add(name))))
    return found


def _is_count(value: object) -> bool:
    # true and false are integers, too, for Python.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= 80 else text[:77] + "..."
