"""The files of a group's checkpoint, as any rank reads them, whatever number of ranks and ZeRO stage wrote them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.train.shards import Piece, Shards, pieces

Read = Callable[[Path], Any]
"""Reads one of a checkpoint's files, on CPU, mapped into memory: what is not looked at is not read."""
Shapes = Mapping[str, Sequence[int]]
"""Of each parameter of a group of the optimizer, by name, in its order."""
Moments = Mapping[str, Any]
"""What torch's optimizer keeps of one flat tensor: others of its shape, and numbers such as the updates made."""


def places(shards: Shards, flats: Sequence[torch.Tensor], groups: Sequence[Shapes]) -> dict[str, list[Piece]]:
    """Where the elements of each parameter are; `flats`: those of rank 0, or of any where all are padded."""
    sizes = [[torch.Size(shape).numel() for shape in group.values()] for group in groups]
    names = [name for group in groups for name in group]
    return dict(zip(names, pieces(shards, [flat.numel() for flat in flats], sizes), strict=True))


class Saved:
    """A checkpoint of one group; each file is opened when something of it is needed, and stays so."""

    def __init__(
        self, directory: Path, shards: Shards, groups: Sequence[Shapes], known: set[str], read: Read, *, bf16: bool
    ) -> None:
        """Compare it with the model that is to be filled.

        Args:
            directory: what `TrainingEngine.save` has written into.
            shards: what is in it is divided by.
            groups: what is trained in this run.
            known: all that its model has.
            read: see `Read`.
            bf16: whether the model is in bf16.

        Raises:
            ValueError: a file is missing, or of another model.
        """
        self._directory = directory
        self._shards = shards
        self._known = known
        self._read = read
        self._kind = "bf16_" if bf16 else ""
        self._opened: dict[str, Any] = {}
        self.groups = self._groups(groups)
        _require_same({name: shape for group in self.groups for name, shape in group.items()}, groups)

    @property
    def common(self) -> dict[str, Any]:
        """What rank 0 has written of all: names and shapes, buffers, the schedule, and counts of updates."""
        rank = "zero_pp_rank_0_" if self._shards.zero_stage == 3 else ""
        return self._open(f"state/{rank}mp_rank_00_model_states.pt")

    def places(self) -> dict[str, list[Piece]]:
        """Where the elements of each parameter are."""
        return places(self._shards, self.masters(0), self.groups)

    def masters(self, rank: int) -> list[torch.Tensor]:
        """The float32 weights of a rank."""
        if self._shards.zero_stage == 0:
            return [self.common["module"][name] for group in self.groups for name in group]
        name = "fp32_flat_groups" if self._shards.zero_stage == 3 else "single_partition_of_fp32_groups"
        return self._optimizer(rank)[name]

    def averages(self, rank: int) -> list[torch.Tensor]:
        """Their moving averages."""
        return self._open(f"average-{rank}.pt")

    def moments(self, rank: int) -> list[Moments]:
        """What the optimizer keeps of each of them; nothing of those that have not been updated."""
        if self._shards.zero_stage == 0:
            found = self.common["optimizer"]
        else:
            name = "optimizer_state_dict" if self._shards.zero_stage == 3 else "base_optimizer_state"
            found = self._optimizer(rank)[name]
        return [found["state"].get(flat, {}) for flat in range(len(self.masters(rank)))]

    def _optimizer(self, rank: int) -> dict[str, Any]:
        return self._open(f"state/{self._kind}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]

    def _groups(self, own: Sequence[Shapes]) -> Sequence[Shapes]:
        """What was trained then. Without ZeRO, the files have it among buffers, by all names, and in no groups: it is
        what is trained now, and whatever nobody knows any more."""
        if self._shards.zero_stage:
            return [{name: tuple(shape) for name, shape in group.items()} for group in self.common["param_shapes"]]
        module = self.common["module"]
        found = [{name: tuple(module[name].shape) for name in group if name in module} for group in own]
        unknown = {name: tuple(value.shape) for name, value in module.items() if name not in self._known}
        return [*found, unknown] if unknown else found

    def _open(self, name: str) -> Any:
        if name not in self._opened:
            try:
                self._opened[name] = self._read(self._directory / name)
            except FileNotFoundError:
                written = f"{self._shards.ranks} ranks with ZeRO-{self._shards.zero_stage} have written"
                raise ValueError(f"{self._directory / name} is missing, of the files that {written}") from None
        return self._opened[name]


def _require_same(then: Shapes, groups: Sequence[Shapes]) -> None:
    now = {name: shape for group in groups for name, shape in group.items()}
    problem = None
    if missing := [name for name in now if name not in then]:
        problem = f"it lacks {', '.join(missing[:3])}"
    elif further := [name for name in then if name not in now]:
        problem = f"it has {', '.join(further[:3])}"
    elif other := [name for name, shape in now.items() if tuple(then[name]) != tuple(shape)]:
        problem = f"its {other[0]} is {list(then[other[0]])}, not {list(now[other[0]])}"
    if problem:
        raise ValueError(f"the checkpoint is of another model: {problem}")
