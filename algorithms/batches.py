"""The order in which rows are visited, of one set or of several with weights."""

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np

from actors.config import UserError
from actors.files.parts import Entry


class Batches:
    """The order in which rows are visited: every row once an epoch, in an order drawn from (seed, epoch).

    The state is two numbers, so that a resumed run continues with the very next row.

    Example: Batches(3, seed=0, shuffle=False).next(4) gives [0, 1, 2, 0].
    """

    def __init__(self, rows: int, *, seed: int, shuffle: bool) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self._rows, self._seed, self._shuffle = rows, seed, shuffle
        self.epoch = 0
        self.position = 0
        self._order = self._draw()

    @property
    def rows(self) -> int | None:
        """Rows of a pass."""
        return self._rows

    @property
    def left(self) -> int | None:
        """Rows of this pass that were not visited yet; 0 at its end."""
        return self._rows - self.position

    def next(self, count: int) -> list[int]:
        """The next `count` row indices; goes on into the next epoch where this one ends."""
        taken: list[int] = []
        while len(taken) < count:
            if self.position == self._rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._draw()
            part = self._order[self.position : self.position + count - len(taken)]
            taken.extend(part)
            self.position += len(part)
        return taken

    def save(self, directory: Path) -> Entry:
        """Epoch and position, and the number of rows they belong to."""
        return {"epoch": self.epoch, "position": self.position, "rows": self._rows}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`. Raises UserError when the data has another number of rows than then; where the entry
        says that it may (`new_rows`), a new pass begins over as many as there are."""
        if entry.get("new_rows") and entry.get("rows") != self._rows:
            self.epoch, self.position = int(entry.get("epoch", 0)), 0
            self._order = self._draw()
            return
        if "rows" not in entry:  # saved by WeightedBatches
            raise UserError(
                f"data.train: must draw from the checkpoint's sets ({', '.join(entry['sets'])}) to resume, got one"
            )
        if entry["rows"] != self._rows:
            raise UserError(f"data.train: must hold the checkpoint's {entry['rows']} rows to resume, got {self._rows}")
        # The order itself is not saved: seed and epoch give it again, whatever the number of rows.
        self.epoch, self.position = entry["epoch"], entry["position"]
        self._order = self._draw()

    def _draw(self) -> Items[int]:
        if not self._shuffle:
            return range(self._rows)
        # Seed sequences take no negative numbers; a negative run.seed is its two's complement.
        entropy = [self._seed % 2**64, self.epoch]
        return np.random.default_rng(entropy).permutation(self._rows).tolist()


class WeightedBatches:
    """The order in which the rows of several sets, one behind the other, are visited.

    Each draw takes the set that is furthest behind its share, so that the shares hold over every stretch of draws;
    within a set every row comes once before any comes again.

    Example: WeightedBatches({"a": 2, "b": 9}, {"a": 1, "b": 2}, seed=0, shuffle=False).next(4) gives [2, 0, 3, 4].
    """

    def __init__(self, sizes: dict[str, int], weights: dict[str, float], *, seed: int, shuffle: bool) -> None:
        starts = np.cumsum([0, *sizes.values()])[:-1].tolist()  # where each set begins among the rows of all
        self._starts = dict(zip(sizes, starts, strict=True))
        total = sum(weights.values())
        # A set of weight 0 is never drawn: it needs no order, and no place in a checkpoint.
        self._shares = {name: weights[name] / total for name in sizes if weights[name]}
        self._sets = {
            name: Batches(size, seed=seed + number, shuffle=shuffle)  # sets of one size would else come in one order
            for number, (name, size) in enumerate(sizes.items())
            if name in self._shares
        }
        self._drawn = dict.fromkeys(self._shares, 0)

    @property
    def rows(self) -> int | None:
        """None: sets have passes of their own, all together none."""
        return None

    @property
    def left(self) -> int | None:
        """None, too."""
        return None

    def next(self, count: int) -> list[int]:
        """The next `count` row indices over all sets."""
        taken = []
        for _ in range(count):
            draws = sum(self._drawn.values()) + 1
            # Of equal ones max takes the first, in the configuration's order: nothing random, so nothing to save.
            name = max(self._shares, key=lambda name: self._shares[name] * draws - self._drawn[name])
            self._drawn[name] += 1
            taken.append(self._starts[name] + self._sets[name].next(1)[0])
        return taken

    def save(self, directory: Path) -> Entry:
        """The shares, how many rows of each set were drawn by them, and the place in each."""
        return {
            "shares": self._shares,
            "drawn": dict(self._drawn),
            "sets": {name: rows.save(directory) for name, rows in self._sets.items()},
        }

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`. Raises UserError when the sets are others than then, or have other numbers of rows.

        Other weights than then hold from here on: what was drawn before does not count for them. Where the entry says
        that there may be other rows (`new_rows`), sets may come and go, too: each is as `Batches` is.
        """
        if entry.get("new_rows"):
            known = entry.get("sets", {})
            for name, rows in self._sets.items():
                rows.load(directory, known.get(name, {}) | {"new_rows": True})
            if entry.get("shares") == self._shares:
                self._drawn = dict(entry["drawn"])
            return
        if "sets" not in entry or entry["sets"].keys() != self._sets.keys():
            then = ", ".join(entry.get("sets", ["one set"]))
            raise UserError(
                f"data.train: must draw from the checkpoint's sets ({then}) to resume, got {', '.join(self._sets)}"
            )
        for name, rows in self._sets.items():
            rows.load(directory, entry["sets"][name])
        # Counts by other shares would first be caught up with: the new ones would hold in the long run only.
        if entry["shares"] == self._shares:
            self._drawn = dict(entry["drawn"])


def row_order(
    sizes: dict[str, int], weights: dict[str, float], *, seed: int, shuffle: bool
) -> Batches | WeightedBatches:
    """The order of the rows of one set or several: by `weights`, without them in proportion to the sizes."""
    if weights:
        return WeightedBatches(sizes, weights, seed=seed, shuffle=shuffle)
    return Batches(sum(sizes.values()), seed=seed, shuffle=shuffle)  # one shuffle of all is in proportion by itself
