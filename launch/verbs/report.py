"""The verb `report`: what has become of a run, for programs as one JSON object."""

import json
import math

from launch.verbs.run_summary import run_summary


def print_summary(run: str) -> int:
    """Print the summary of a run, finished or not; NaN and infinity are null. Raises UserError where there is none."""
    print(json.dumps(_finite(run_summary(run)), ensure_ascii=False, allow_nan=False, indent=2))
    return 0


def _finite(value: object) -> object:
    # Python reads NaN in a file that somebody has edited, and JSON has none.
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
