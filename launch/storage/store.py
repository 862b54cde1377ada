"""Files in an object store, by fsspec: put and fetched as a whole, as nothing there can be renamed."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from actors.failure import first_sentence
from actors.files.own_files import create
from actors.secret_text import masked

_LONGEST_REASON = 200
"""Characters of a library's message that are told."""
_PIECE = 2**22
"""Bytes that are fetched at a time."""


_WAITS_S = (1.0, 2.0, 4.0)
"""Between tries, where the run waits for what is read."""
Found = TypeVar("Found")


class StorageError(OSError):
    """That storage has failed, and why, in one line; the same may succeed later."""


class Storage:
    """What is below a URL, such as s3://bucket/runs; credentials are those of the environment.

    Names are relative paths with /. Each method raises StorageError.
    """

    def __init__(self, url: str) -> None:
        """Opens no connection, but may look for credentials."""
        import fsspec  # only where there is storage

        self.url = url.rstrip("/")
        options = {"auto_mkdir": True} if url.startswith("file://") else {}
        with self._told("open", ""):
            # A listing that is kept would not show what others have put or removed.
            self._files, root = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
            self._root = str(root).rstrip("/")

    def put(self, path: Path, name: str) -> None:
        """Write a file; raises OSError when the file itself cannot be read."""
        with path.open("rb"):
            pass
        with self._told("write", name):
            self._files.put_file(str(path), self._path(name))

    def put_text(self, text: str, name: str) -> None:
        """Write a text, whole or not at all where storage does so."""
        with self._told("write", name):
            self._files.pipe_file(self._path(name), text.encode())

    def text(self, name: str) -> str | None:
        """A text; None where there is none."""
        with suppress(FileNotFoundError), self._told("read", name):
            return self._files.cat_file(self._path(name)).decode("utf-8", "replace")
        return None

    def fetch(self, name: str, path: Path) -> str | None:
        """Write what is there to a new file; returns its SHA-256, None where nothing is there. Raises OSError when the
        file cannot be written."""
        sha256 = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(create(path), "wb") as file:
                for piece in self._pieces(name):
                    sha256.update(piece)
                    file.write(piece)
        except FileNotFoundError:
            path.unlink()
            return None
        return sha256.hexdigest()

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self._told("read", name), self._files.open(self._path(name), "rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def sizes(self, prefix: str) -> dict[str, int]:
        """Name -> bytes of all that is below a name."""
        with self._told("list", prefix):
            found = self._files.find(self._path(prefix), detail=True)
            return {path[len(self._root) + 1 :]: info["size"] for path, info in found.items()}

    def remove(self, prefix: str) -> None:
        """Remove a file, or all that is below a name; does nothing where there is nothing."""
        with suppress(FileNotFoundError), self._told("remove", prefix):
            self._files.rm(self._path(prefix), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each kind of storage has its own, and new ones with each version
            if isinstance(error, FileNotFoundError) and doing in ("read", "remove"):
                raise
            raise StorageError(self._why(error, doing, name)) from error

    def _why(self, error: Exception, doing: str, name: str) -> str:
        text = masked(first_sentence(" ".join(str(error).split())))[:_LONGEST_REASON]
        return f"cannot {doing} {self.url}/{name} ({type(error).__name__}{': ' * bool(text)}{text})"


def patiently(act: Callable[[], Found]) -> Found:
    """What a function returns, which is called again a few times where storage fails; raises StorageError."""
    for wait_s in _WAITS_S:
        try:
            return act()
        except StorageError:
            time.sleep(wait_s)
    return act()
