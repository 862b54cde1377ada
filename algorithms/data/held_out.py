"""Rows that are held out of those to train on, `data.eval_fraction` of them: always the same draw."""

from typing import TypeVar

import numpy as np

from actors.config import UserError

Item = TypeVar("Item")


def held_out_count(items: int, fraction: float, field: str) -> int:
    """How many of so many items are held out; raises UserError when there are not two."""
    if items < 2:
        raise UserError(f"data.eval_fraction: needs at least two rows in {field}, got {items}")
    return min(items - 1, max(1, round(fraction * items)))  # at least one row on either side


def divided(items: list[Item], fraction: float, field: str) -> tuple[list[Item], list[Item]]:
    """Items to train on and those held out, `fraction` of them and at least one, in their order; always the same draw.

    Raises UserError when there are not two items.
    """
    count = held_out_count(len(items), fraction, field)
    # Seeded by their number, not by run.seed: runs of different seeds are evaluated on the same rows.
    held_out = set(np.random.default_rng(len(items)).permutation(len(items))[:count].tolist())
    return (
        [item for index, item in enumerate(items) if index not in held_out],
        [items[index] for index in sorted(held_out)],
    )
