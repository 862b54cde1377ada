"""Rows of a run's files as they are read for a page: what is damaged is none, and numbers are finite or nothing."""

import json
import math
from typing import Any

_LARGEST_STEP = 2**53
"""From here on a browser's numbers are no whole numbers."""


def as_json(line: bytes) -> dict[str, Any] | None:
    """Any line of JSON that is a mapping; None for everything else."""
    try:
        found = json.loads(line.strip(b"\0\r\n ").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def parsed_row(line: bytes) -> dict[str, Any] | None:
    """A line of JSON with the number of its step; None where it is none of a run's. NaN and infinity may be in it."""
    row = as_json(line)
    if row is None:
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step < _LARGEST_STEP else None


def number(value: object) -> float | None:
    """A finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole_number(value: object) -> int | None:
    """A whole number that a browser can hold; None for everything else."""
    return value if type(value) is int and abs(value) < _LARGEST_STEP else None


def text(value: object, most: int = 2000) -> str:
    """A text; of anything else what JSON makes of it, and nothing of null."""
    if value is None:
        return ""
    return (value if isinstance(value, str) else encoded(value).decode())[:most]


def encoded(value: object) -> bytes:
    """JSON for a browser: without NaN and infinity, for which null stands, and with escapes for lone surrogates."""
    try:
        found = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        found = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return found.encode("utf-8", "backslashreplace")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
