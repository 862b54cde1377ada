"""Folders as sources: which of their files hold rows, and which of those are of a split."""

import os
import re
from collections import defaultdict
from pathlib import Path

from actors.config import UserError
from algorithms.data.row_files import FILE_TYPES
from algorithms.words import nearest

_ABOUT = ("dataset_infos.json", "dataset_info.json")
"""Files that say what others hold."""
_BESIDE = ("", ".md", ".py", ".txt", ".yaml", ".yml", ".png", ".jpg", ".svg", ".pdf")
"""Endings of what may lie beside rows, such as LICENSE. Anything else may be rows that would be missing."""
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})$")
_CONFIGURATION = re.compile(rb"^[ -]*config_name:[ ]*['\"]?([^\s'\"]+)", re.MULTILINE)
_LARGEST_CARD, _MOST_FILES = 2**20, 100_000
_TYPES = "one type (.jsonl, .json, .csv, .tsv or .parquet)"


def row_files(folder: Path, split: str, field: str) -> list[Path]:
    """The files below a folder that hold the rows of a split, in the order of their names; where files are not named
    by split, all of them.

    Raises:
        UserError: with `field`: no files of rows, of several types, or of this split; a part of a set of files that is
            not there; what may be rows and cannot be read.
    """
    files = _all_files(folder, field)
    by_split = _by_split(folder, files, field)
    if by_split is None:
        return files
    if split not in by_split:
        option = {"data.train": "data.split", "data.eval": "data.eval_split", "data.corpus": "data.eval_split"}
        setting = option.get(".".join(field.split(".")[:2]))
        choose = f" ({setting} chooses)" if setting else ""
        raise UserError(
            f"{field}: must have files of the split {split}{nearest(split, by_split)}, got those of "
            f"{', '.join(sorted(by_split))} in {folder}{choose}"
        )
    return by_split[split]


def has_splits(folder: Path, field: str) -> bool:
    """Whether the files below a folder are named by split. Raises UserError as `row_files` does."""
    return _by_split(folder, _all_files(folder, field), field) is not None


def _all_files(folder: Path, field: str) -> list[Path]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _below(folder, field):
        kind = next((kind for kind in FILE_TYPES if path.name.endswith(kind)), None)
        if kind is not None:
            found[kind.removesuffix(".gz")].append(path)
        elif path.suffix == ".arrow":
            raise UserError(
                f"{field}: must hold files of {_TYPES} (of a data set that save_to_disk wrote, to_parquet makes "
                f"one), got {path}"
            )
        elif path.suffix not in _BESIDE:
            raise UserError(f"{field}: must hold files of {_TYPES} and nothing else that may be rows, got {path}")
    if not found:
        raise UserError(f"{field}: must hold files of {_TYPES}, got none in {folder}")
    if len(found) > 1:
        one, other = (paths[0] for paths in list(found.values())[:2])
        raise UserError(f"{field}: must hold files of one type, got {one} and {other}")
    [files] = found.values()
    _require_one_configuration(folder, field)
    _require_all_shards(files, field)
    return files


def _below(folder: Path, field: str) -> list[Path]:
    """All files below a folder but hidden ones and descriptions, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{field}: {error.filename} cannot be read ({error.strerror})")

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Which may lead back to where it is, and whose files would be missing without a word.
        if link := next((path for name in folders if (path := Path(place, name)).is_symlink()), None):
            raise UserError(f"{field}: must hold its files itself, got a link to a folder, {link}")
        found += [Path(place, name) for name in names if not name.startswith(".") and name not in _ABOUT]
        if len(found) > _MOST_FILES:
            raise UserError(f"{field}: must hold at most {_MOST_FILES:,} files, got more in {folder}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _by_split(folder: Path, files: list[Path], field: str) -> dict[str, list[Path]] | None:
    """Split -> files; None where no file is named by one."""
    found: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        found[_split_of(path.relative_to(folder))].append(path)
    others = found.pop(None, [])
    splits = {name: paths for name, paths in found.items() if name is not None}
    if splits and others:
        named = next(iter(splits.values()))[0]
        raise UserError(f"{field}: must hold files that are all named by split, or none, got {named} and {others[0]}")
    return splits or None


def _split_of(path: Path) -> str | None:
    """The split by which a file, or else the folder that it is in, is named."""
    stem = _stem(path)
    # The hub calls a file by its split and the file's number: train_sft is a split of its own.
    if (shard := _SHARD.match(stem)) and re.split("[_.-]", shard[1])[0] in _SPLITS:
        return shard[1]
    for name in (stem, *reversed(path.parts[:-1])):
        words = set(_split_words(name))
        if words:
            return words.pop() if len(words) == 1 else None
    return None


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(kind) for kind in FILE_TYPES if path.name.endswith(kind))


def _split_words(name: str) -> list[str]:
    return [word for word in re.split("[_. -]", name) if word in _SPLITS]


def _require_one_configuration(folder: Path, field: str) -> None:
    """Refuse a data set of the hub that has several configurations, which are not meant to be read as one."""
    card = folder / "README.md"
    if not card.is_file():
        return
    with card.open("rb") as file:
        head, _, _ = file.read(_LARGEST_CARD).removeprefix(b"---").partition(b"\n---")
    names = list(dict.fromkeys(name.decode(errors="replace") for name in _CONFIGURATION.findall(head)))
    if len(names) > 1:
        known = ", ".join(names)
        raise UserError(f"{field}: must be the folder of one configuration ({card} has {known}), got {folder}")


def _require_all_shards(files: list[Path], field: str) -> None:
    """Refuse train-00001-of-00002 without train-00000-of-00002: rows would be missing without a word."""
    numbers: dict[tuple[Path, str, int], set[int]] = defaultdict(set)
    for path in files:
        if shard := _SHARD.match(_stem(path)):
            numbers[path.parent, shard[1], int(shard[3])].add(int(shard[2]))
    for (place, name, count), there in numbers.items():
        if missing := sorted(set(range(count)) - there):
            raise UserError(f"{field}: must hold all {count} files of {name}, got no {missing[0]:05} in {place}")
