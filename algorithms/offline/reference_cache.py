"""Reference logprobs computed once, kept on disk under the content of what they are of: reference model and tokens."""

import hashlib
import os
from pathlib import Path

import numpy as np

from actors.episodes import Sequence
from actors.models.identity import model_identity


class ReferenceCache:
    """Summed logprobs of sequences by one reference model, in one file.

    Example: cache = ReferenceCache(Path("outputs/reference"), "qwen-0.5b"); cache.add([[sequence]], np.array([-3.5]))
    """

    def __init__(self, directory: Path, model: str) -> None:
        """`model` names the content of the reference model, such as a hash of it."""
        self._file = directory / f"{hashlib.sha256(model.encode()).hexdigest()[:32]}.npz"
        self._values: dict[str, float] = {}
        if self._file.exists():
            with np.load(self._file) as stored:
                self._values = dict(zip(stored["keys"].tolist(), stored["values"].tolist(), strict=True))

    def missing(self, rows: list[list[Sequence]]) -> list[list[Sequence]]:
        """Rows of which a sequence is not known."""
        return [row for row in rows if any(_key(sequence) not in self._values for sequence in row)]

    def add(self, rows: list[list[Sequence]], values: np.ndarray) -> None:
        """Keep the logprobs of all sequences of `rows`, in order; written at once, all or nothing."""
        sequences = [sequence for row in rows for sequence in row]
        self._values |= {_key(item): float(value) for item, value in zip(sequences, values, strict=True)}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".{os.getpid()}.partial")  # another run may write the same cache
        partial.unlink(missing_ok=True)
        with partial.open("xb") as stream:  # "x" follows no link that somebody has put there
            np.savez(stream, keys=np.array(list(self._values)), values=np.array(list(self._values.values())))
        os.replace(partial, self._file)

    def read(self, rows: list[list[Sequence]]) -> np.ndarray:
        """Logprobs of all sequences of `rows`, in order, float64; raises KeyError for one that is missing."""
        return np.array([self._values[_key(sequence)] for row in rows for sequence in row])


def model_content(directory: Path, settings: str) -> str:
    """A name for what a model directory holds, from its files' names, sizes and times, and from `settings`.

    A model of the hub is named by its commit, as branches move.
    """
    if not directory.is_dir() and (commit := model_identity(str(directory))):
        return "\n".join([str(directory), settings, commit])
    files = sorted(directory.glob("*")) if directory.is_dir() else []
    # Not their content: gigabytes would be read at every start.
    parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files if path.is_file()]
    return "\n".join([str(directory), settings, *parts])


def _key(sequence: Sequence) -> str:
    # With the mask: it says of which tokens the logprobs were added up.
    content = sequence.token_ids.tobytes() + sequence.action_mask.tobytes()
    return hashlib.sha256(content).hexdigest()
