"""What rollouts have at one moment, and what of it a checkpoint keeps.

ready      groups with their scores
unscored   complete groups that rewards still have
begun      groups on their way: prompts, and what each of their samples has so far
left out   prompts of which no group will come, and that no report has named yet
lengths    of the responses to each prompt, by which tail batching orders them
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from actors.episodes import Prompt
from actors.files.parts import Entry, read_arrays, write_arrays
from actors.rollout.types import Sampling
from algorithms.rollouts.discards import LeftOut, Why
from algorithms.rollouts.groups import BegunGroup, ScoredGroup, begun_of, episodes_of
from algorithms.rollouts.lane import Drawn
from algorithms.rollouts.saved import (
    PartialGroup,
    group_arrays,
    groups_of,
    length_arrays,
    lengths_of,
    partial_arrays,
    partial_groups_of,
    places_of,
)
from algorithms.rollouts.tail import Place

_FILE = "ahead.safetensors"


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was drawn and not taken."""

    ready: Sequence[ScoredGroup]
    unscored: Sequence[ScoredGroup]
    """Complete, and of which no score counts yet."""
    begun: Sequence[Drawn]
    """Prompts that go on from what there is of them, or start anew."""
    left_out: Sequence[LeftOut]
    taken: int
    """Groups that were given out before."""
    groups_per_step: int
    """That a step asked for."""
    lengths: Mapping[Place, float] = field(default_factory=dict)
    """See `Tail.lengths`."""

    def fitting(self, sampling: Sampling, groups_per_step: int) -> "Ahead":
        """The same for a run that samples so and whose steps ask for so many groups: what has other numbers of samples
        than it, or longer ones, starts anew, and as many steps were made."""

        def fits(tokens: list[int]) -> bool:
            return len(tokens) == sampling.samples and max(tokens) <= sampling.max_tokens

        ready, odd_ready = _parted(self.ready, fits)
        unscored, odd_unscored = _parted(self.unscored, fits)
        begun = [
            each if each.begun and fits([info.tokens for info in each.begun.infos]) else replace(each, begun=None)
            for each in self.begun
        ]
        anew = [Drawn(each.prompt) for each in odd_ready + odd_unscored]
        # The last step may have got fewer.
        steps = -(-self.taken // self.groups_per_step)
        taken = steps * groups_per_step
        return Ahead(ready, unscored, anew + begun, self.left_out, taken, groups_per_step, self.lengths)

    def write(self, directory: Path, timeout_s: float) -> Entry:
        """Write arrays, if there is anything. Raises GroupError when what a group has is lost, or does not come in
        time."""
        entry: Entry = {"taken": self.taken, "groups_per_step": self.groups_per_step}
        if self.left_out:
            entry["left_out"] = [[each.prompt.of_set, each.prompt.index, each.why] for each in self.left_out]
        if not (self.ready or self.unscored or self.begun or self.lengths):
            return entry
        complete = [*self.ready, *self.unscored]
        arrays = group_arrays(complete, [episodes_of(group, timeout_s) for group in complete])
        arrays |= partial_arrays(
            [
                PartialGroup(prompt=each.prompt, begun=begun_of(each.begun, timeout_s) if each.begun else ())
                for each in self.begun
            ]
        )
        arrays |= length_arrays(self.lengths)
        arrays["attempts"] = np.array([each.attempt for each in self.begun], dtype=np.int64)
        write_arrays(arrays, directory / _FILE)
        return entry | {"ready": len(self.ready), "unscored": len(self.unscored)}


def read_ahead(directory: Path, entry: Entry, prompt_of: Callable[[str, int], Prompt], *, go_on: bool) -> Ahead:
    """What `write` has written; with `go_on` false, what was begun starts anew. Where the entry says that there may be
    other rows (`new_rows`), everything does that is of a row which is still there.

    Raises:
        KeyError, ValueError, IndexError: it is nothing of the kind, or there is no such prompt.
    """
    counts = int(entry["taken"]), int(entry["groups_per_step"])
    arrays = read_arrays(directory / _FILE) if "ready" in entry else {}
    if entry.get("new_rows"):
        there = (_found(prompt_of, *place) for place in (places_of(arrays) if arrays else ()))
        return Ahead([], [], [Drawn(prompt) for prompt in there if prompt], [], *counts)
    named = [_left_out(prompt_of, *each) for each in entry.get("left_out", ())]
    if not arrays:
        return Ahead([], [], [], named, *counts)
    complete, ready = groups_of(arrays, prompt_of), int(entry["ready"])
    begun = [
        Drawn(group.prompt, None, attempt, BegunGroup.of(group.begun) if go_on and group.begun else None)
        for group, attempt in zip(partial_groups_of(arrays, prompt_of), arrays["attempts"].tolist(), strict=True)
    ]
    return Ahead(complete[:ready], complete[ready:], begun, named, *counts, lengths_of(arrays))


def _found(prompt_of: Callable[[str, int], Prompt], of_set: str, row: int) -> Prompt | None:
    try:
        return prompt_of(of_set, row)
    except KeyError:
        return None


def _parted(
    groups: Sequence[ScoredGroup], fits: Callable[[list[int]], bool]
) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """Complete groups whose numbers of sampled tokens fit, and the others."""
    found: tuple[list[ScoredGroup], list[ScoredGroup]] = [], []
    for group in groups:
        found[not fits([info.sampled_tokens for info in group.infos])].append(group)
    return found


def _left_out(prompt_of: Callable[[str, int], Prompt], of_set: str, row: int, why: Why) -> LeftOut:
    if why not in get_args(Why):
        raise ValueError(f"no prompt is left out as {why!r}")
    return LeftOut(prompt_of(of_set, row), why)
