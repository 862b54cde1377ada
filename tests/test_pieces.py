"""Files that travel in pieces are the same afterwards, and take no memory twice."""

from collections import deque
from pathlib import Path

import pytest

from actors.files.own_files import stranger
from actors.files.pieces import Contents, Unpacked, pieces_of, size_of

FILES = {"a.pt": [b"0123456789", b"", b"abc"], "state/b.pt": [b"x" * 25], "empty": [], "last": [b"z"]}


def files() -> Contents:
    return deque((name, deque(contents)) for name, contents in FILES.items())


@pytest.mark.parametrize("most", [1, 7, 10, 39, 1000])
def test_files_are_what_they_were(most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pieces = list(pieces_of(files(), most))
    assert size_of(files()) == 39 == sum(piece.size for piece in pieces)
    assert all(piece.size <= most for piece in pieces) and len(pieces) <= 39 // most + 1
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    found = Unpacked()
    for piece in pieces:
        found.write(piece)
    assert found.directory.parent == tmp_path and found.directory.stat().st_mode & 0o077 == 0, "nobody else's business"
    kept = {str(path.relative_to(found.directory)): path for path in found.directory.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in kept.items()} == {
        name: b"".join(contents) for name, contents in FILES.items()
    }
    assert [stranger(path) for path in kept.values()] == [None] * 4, "they are loaded"
    found.remove()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_one_piece() -> None:
    [piece] = pieces_of(deque())
    assert piece.last and piece.size == 0


def test_what_was_handed_out_is_let_go_of() -> None:
    given = files()
    pieces = pieces_of(given, 10)
    next(pieces)
    assert size_of(given) == 26, "all but the first file, of which the generator has the rest"
