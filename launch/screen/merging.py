"""Words for what is lost when adapters are merged into weights of little precision."""

_SMALL = 1e-3
"""Share of the adapters' change that may be lost without a word."""


def merging_lost(error: float | None, adapters: object) -> list[str]:
    """A line about the `MergeError.value` of a model that was written; none where adapters were not merged, or little
    of them is lost. `adapters` is where they lie unmerged."""
    if error is None or error < _SMALL:
        return []
    return [f"merged: rounding lost {error:.1%} of what the adapters change; all of it is in {adapters}"]
