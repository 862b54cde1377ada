"""How DeepSpeed writes and reads the files of a checkpoint, as a plain class of its own would do it."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from torch.serialization import MAP_LOCATION

from actors.files import stored
from actors.files.pieces import Contents


class CheckpointFiles(Protocol):
    """How DeepSpeed writes and reads its files."""

    hashes: dict[Path, str]
    failed: OSError | None
    captured: "CapturedFiles | None"

    def save(self, state_dict: object, path: str) -> None: ...
    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
    def put_off(self, write: Callable[..., object]) -> Callable[..., object]: ...


class CapturedFiles:
    """What a rank would have written of a checkpoint, in memory, until it does so."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Path, list[bytes]] | Callable[[], object]] = deque()

    def add(self, act: Callable[[], object]) -> None:
        """Something that is to be done besides files of tensors, in its turn."""
        self._waiting.append(act)

    def add_file(self, path: Path, pieces: list[bytes]) -> None:
        """A file as `actors.files.stored.pickled` has made it."""
        self._waiting.append((path, pieces))

    def write(self) -> dict[Path, str]:
        """Write all of it, once, on any thread; returns the SHA-256 of files. Raises OSError."""
        hashes = {}
        while self._waiting:
            entry = self._waiting.popleft()  # what is written takes no memory any more
            if isinstance(entry, tuple):
                path, pieces = entry
                hashes[path] = stored.write_pickled(pieces, path)
            else:
                entry()
        return hashes

    def files_below(self, directory: Path) -> Contents:
        """The files of tensors by their names there, of which nothing is written then."""
        files = [entry for entry in self._waiting if isinstance(entry, tuple)]
        self._waiting.clear()
        return deque((str(path.relative_to(directory)), deque(pieces)) for path, pieces in files)


def checkpoint_files(base: type, frozen: set[str], types: Sequence[type]) -> CheckpointFiles:
    """How DeepSpeed writes and reads its files: without frozen parameters, which are those of the model that training
    starts from; hashed, and as data only, as its own way would run what they name.

    Where there is something `captured`, it takes what would be written, and nothing is.

    A rank that cannot write does not say so at once, but keeps it as `failed`, and writes no more: DeepSpeed lets ranks
    wait for each other while it saves, and one that left it there would leave the others waiting.

    Args:
        base: DeepSpeed's own class for that.
        frozen: names of the parameters that are.
        types: what files may hold beside plain data.
    """

    class Files(base):
        def __init__(self) -> None:
            super().__init__()
            self.hashes: dict[Path, str] = {}
            self.failed: OSError | None = None
            self.captured: CapturedFiles | None = None

        def put_off(self, write: Callable[..., object]) -> Callable[..., object]:
            def written(*args: object, **kwargs: object) -> None:
                if self.captured is not None:
                    self.captured.add(partial(write, *args, **kwargs))
                elif self.failed is None:
                    try:
                        write(*args, **kwargs)
                    except OSError as error:
                        self.failed = error

            return written

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            self.put_off(super().makedirs)(path, exist_ok=exist_ok)

        def save(self, state_dict: object, path: str) -> None:
            if self.captured is None:
                self.put_off(self._save)(state_dict, path)
            else:
                self.captured.add_file(Path(path), stored.pickled(self._trained(state_dict)))

        def _save(self, state_dict: object, path: str) -> None:
            self.hashes[Path(path)] = stored.write(self._trained(state_dict), Path(path))

        def _trained(self, state_dict: object) -> object:
            if isinstance(state_dict, dict) and state_dict.get("module"):
                # DeepSpeed leaves a parameter out under its first name only, and not what a quantized one consists of.
                module = {n: each for n, each in state_dict["module"].items() if not is_or_within(n, frozen)}
                state_dict = state_dict | {"module": module}
            return state_dict

        def load(self, path: str, map_location: MAP_LOCATION = None) -> object:
            return stored.read(Path(path), types, map_location)

    return Files()


def is_or_within(name: str, parameters: set[str]) -> bool:
    """Whether an entry of a state dict is one of these parameters, or a part of one (weight.absmax of weight)."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in parameters for count in range(1, len(parts) + 1))
