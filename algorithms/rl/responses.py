"""The responses behind a group's reference, for what is only reported: read by the driver, a group at a time."""

import contextlib
import time
from collections.abc import Callable, Iterable

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from actors.episodes import Episode, TokenFields
from algorithms.rollouts.groups import ScoredGroup

_DEADLINE_S, _LEAST_S = 60.0, 1.0
"""Longest time for all responses of a report, and what a group has of it however late the others were."""


def report_ends() -> float:
    """When a report that begins now should have read its responses, on time.monotonic()."""
    return time.monotonic() + _DEADLINE_S


def responses_of(group: ScoredGroup, note: Callable[[str], None], until: float) -> list[Episode]:
    """All responses to the group's prompt; none, with a note, where they are lost, or later than `until`.

    What is only reported ends no run, nor does it keep one waiting group by group: whoever trains on responses that
    are lost says so.
    """
    try:
        return ray.get(group.rollouts, timeout=max(_LEAST_S, until - time.monotonic()))
    except RayError as error:  # a deadline that has passed is one, too
        why = type(error).__name__
        note(f"the responses to data row {group.prompt.index} could not be read ({why}): they are in no samples file")
        return []


def noted_reads(references: Iterable[ObjectRef[TokenFields]], until: float) -> TokenFields:
    """What ranks have read of some responses; without those of ranks that are lost, or later than `until`: whoever
    needs such a rank says so."""
    found: TokenFields = {}
    for reference in references:
        with contextlib.suppress(RayError):
            found |= ray.get(reference, timeout=max(_LEAST_S, until - time.monotonic()))
    return found
