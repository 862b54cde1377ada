"""What rollouts have at one moment, and what of it a checkpoint keeps.

ready      groups with their scores
unscored   complete groups that rewards still have
begun      groups on their way: prompts, and what each of their samples has so far
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.episodes import Prompt
from actors.files.parts import Entry, read_arrays, write_arrays
from algorithms.rollouts.groups import ScoredGroup, episodes_of
from algorithms.rollouts.lane import Drawn
from algorithms.rollouts.saved import PartialGroup, group_arrays, groups_of, partial_arrays, partial_groups_of

_FILE = "ahead.safetensors"


@dataclass(frozen=True, slots=True)
class Ahead:
    """What was drawn and not taken."""

    ready: Sequence[ScoredGroup]
    unscored: Sequence[ScoredGroup]
    """Complete, and of which no score counts yet."""
    begun: Sequence[Drawn]
    """Prompts that go on from what there is of them, or start anew."""
    taken: int
    """Groups that were given out before."""

    def write(self, directory: Path, timeout_s: float) -> Entry:
        """Write arrays, if there is anything. Raises GroupError when the episodes of a group are lost, or do not come
        in time."""
        if not self.ready and not self.unscored and not self.begun:
            return {"taken": self.taken}
        complete = [*self.ready, *self.unscored]
        arrays = group_arrays(complete, [episodes_of(group, timeout_s) for group in complete])
        arrays |= partial_arrays([PartialGroup(prompt=each.prompt, begun=each.begun) for each in self.begun])
        arrays["attempts"] = np.array([each.attempt for each in self.begun], dtype=np.int64)
        write_arrays(arrays, directory / _FILE)
        return {"taken": self.taken, "ready": len(self.ready), "unscored": len(self.unscored)}


def read_ahead(directory: Path, entry: Entry, prompt_of: Callable[[str, int], Prompt], *, go_on: bool) -> Ahead:
    """What `write` has written; with `go_on` false, what was begun starts anew.

    Raises:
        KeyError, ValueError, IndexError: it is nothing of the kind, or there is no such prompt.
    """
    taken = int(entry["taken"])
    if "ready" not in entry:
        return Ahead([], [], [], taken)
    arrays = read_arrays(directory / _FILE)
    complete, ready = groups_of(arrays, prompt_of), int(entry["ready"])
    begun = [
        Drawn(group.prompt, None, attempt, group.begun if go_on else ())
        for group, attempt in zip(partial_groups_of(arrays, prompt_of), arrays["attempts"].tolist(), strict=True)
    ]
    return Ahead(complete[:ready], complete[ready:], begun, taken)
