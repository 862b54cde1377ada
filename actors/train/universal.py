"""A checkpoint that another number of ranks wrote, or another ZeRO stage, loaded into the engine of today.

DeepSpeed's files say which parameters are in a rank's flat tensors, and in which order; `shards` says where the
elements of each are. So each rank fills its own flat tensors, of weights, moments and averages alike, with stretches of
those that were saved. DeepSpeed's own loading refuses other ranks, and its universal format knows neither stage 0, nor
optimizers without moments, nor averages.

Float32 values are copied as they are. The same updates follow, but for the order in which another number of ranks adds
up; of dropout, see `TrainedWorker.load`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.config import UserError
from actors.train.masters import masters, of_masters, set_masters
from actors.train.saved import Moments, Read, Saved, places
from actors.train.shards import Piece, Shards

if TYPE_CHECKING:
    from actors.train.engine import TrainingEngine

Flats = Callable[[int], Sequence[torch.Tensor | None]]
"""Flat tensors of a rank that has saved; None stands for zeros."""
_COUNT = "step"
"""Where torch's optimizers count updates; whatever else they keep of a tensor is of its shape."""


def load_universal(engine: "TrainingEngine", directory: Path, shards: Shards, read: Read) -> float:
    """Fill an engine with what other ranks, or ranks with another ZeRO stage, have saved; collective.

    Args:
        engine: of the same model and optimizer as theirs.
        directory: what their `save` has written into.
        shards: what their state is divided by.
        read: see `Read`.

    Returns:
        The rate of the next update by the schedule of then; the engine still has to set that of this run.

    Raises:
        ValueError: a file is missing, or of another model.
        UserError: the state cannot be divided so.
    """
    known = set(engine.module.state_dict())
    saved = Saved(directory, shards, engine.groups, known, read, bf16=engine.dtype == "bf16")
    _load_buffers(engine.module, saved.common["module"])
    fill = _Filler(engine, saved.places())
    set_masters(engine.engine.optimizer, fill(saved.masters))
    _set_moments(engine, saved, fill, directory)
    if engine.averages:
        for average, values in zip(engine.averages, fill(saved.averages), strict=True):
            average.copy_(values)
    schedule = saved.common["lr_scheduler"]
    engine.engine.lr_scheduler.load_state_dict(schedule)
    for count in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine.engine, count, saved.common[count])
    return float(schedule["_last_lr"][0])


class _Filler:
    """Makes flat tensors of this rank out of those that were saved."""

    def __init__(self, engine: "TrainingEngine", saved: dict[str, list[Piece]]) -> None:
        flats = masters(engine.engine.optimizer)
        self._shapes = [flat.shape for flat in flats]
        own = places(engine.shards, flats, engine.groups)
        # Without ZeRO, every rank has what the first one has.
        rank = engine.rank if engine.shards.zero_stage else 0
        self._parts = [([piece for piece in own[name] if piece.rank == rank], saved[name]) for name in own]

    def __call__(self, flats: Flats) -> list[torch.Tensor]:
        """In float32, on CPU; what nobody has saved, as padding, is 0."""
        found, flats = [torch.zeros(shape) for shape in self._shapes], cache(flats)
        for own, saved in self._parts:
            for to in own:
                for source in saved:
                    low = max(to.start, source.start)
                    count = min(to.start + to.count, source.start + source.count) - low
                    if count > 0 and (values := flats(source.rank)[source.flat]) is not None:
                        values = values.reshape(-1).narrow(0, source.offset + low - source.start, count)
                        found[to.flat].view(-1).narrow(0, to.offset + low - to.start, count).copy_(values)
        return found


def _set_moments(engine: "TrainingEngine", saved: Saved, fill: _Filler, directory: Path) -> None:
    """Give torch's optimizer its moments, and the number of updates that they are of.

    A parameter without any, as none of its gradients was ever needed, has zeros, as DeepSpeed would have had it.
    """
    known = [moments for moments in saved.moments(0) if moments]
    names = sorted({name for moments in known for name in moments if name != _COUNT})
    filled = {name: fill(partial(_named, saved, name)) for name in names}
    updates = _updates(known, directory)
    with of_masters(engine.engine.optimizer) as optimizer:
        state = optimizer.state_dict()
        count = len(masters(engine.engine.optimizer)) if known else 0
        state["state"] = {
            # A number of its own for each: torch counts in place.
            flat: {name: values[flat] for name, values in filled.items()} | copy.deepcopy(updates)
            for flat in range(count)
        }
        optimizer.load_state_dict(state)


def _named(saved: Saved, name: str, rank: int) -> list[torch.Tensor | None]:
    return [moments.get(name) for moments in saved.moments(rank)]


def _updates(known: Sequence[Moments], directory: Path) -> dict[str, Any]:
    """The number of updates that all have had, by the name that torch gives it; nothing where it counts none.

    Raises UserError where they have had others: without ZeRO, on one rank, what has no gradient, as an expert without
    tokens, is not updated, and with ZeRO it is.
    """
    numbers = [moments[_COUNT] for moments in known if _COUNT in moments]
    counts = sorted({float(each) for each in numbers})
    if len(counts) > 1:
        raise UserError(
            f"{directory.name}.zero_stage: must be 0 to resume from {directory}, whose parameters have had "
            f"{counts[0]:g} to {counts[-1]:g} updates: ZeRO has one number for all"
        )
    return {_COUNT: numbers[0]} if numbers else {}


def _load_buffers(module: torch.nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Load what the model computes with beside its parameters, such as a router's corrections."""
    names = {name for name, _ in module.named_buffers()}
    module.load_state_dict({name: value for name, value in saved.items() if name in names}, strict=False)
