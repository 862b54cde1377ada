"""The responses behind a group's reference, for what is only reported: read by the driver, a group at a time."""

from collections.abc import Callable

import ray
from ray.exceptions import RayError

from actors.batch import Episode
from algorithms.rollouts.groups import ScoredGroup

_DEADLINE_S = 60


def responses_of(group: ScoredGroup, note: Callable[[str], None]) -> list[Episode]:
    """All responses to the group's prompt; none, with a note, where they are lost or late.

    What is only reported ends no run: whoever trains on responses that are lost says so.
    """
    try:
        return ray.get(group.rollouts, timeout=_DEADLINE_S)
    except RayError as error:
        why = type(error).__name__
        note(f"the responses to data row {group.prompt.index} could not be read ({why}): they are in no samples file")
        return []
