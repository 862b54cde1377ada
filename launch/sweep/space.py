"""What a sweep's overrides say: which fields are fixed, which take several values, and which these are.

a.b=1e-4,3e-4           each of them: a grid with all other lists
a.b=choice(1e-4,3e-4)   one of them, drawn
a.b=uniform(0,1)        a number between, drawn; loguniform(1e-6,1e-4) of its logarithm; randint(1,9): 1 to 8
a.b=[1, 2]              one value, as in all other verbs: brackets and quotes hold a value together
"""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from actors.config import UserError
from actors.secret_text import masked, names_secret
from launch.settings.file import parse

Point = dict[str, str]
"""Field -> YAML text of its value, of each field that takes several."""
RANGES = ("uniform", "loguniform", "randint")
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\((.*)\)\s*", re.DOTALL)
_OWN = {
    "run.name": "the sweep names its trials",
    "run.output": "trials are in the sweep's directory",
    "run.storage": "each trial has a place of its own below it",
    "run.hub_model_id": "one trial would replace the model of the other",
    "checkpoint.resume": "a sweep goes on from its trials' checkpoints",
}
"""Fields that cannot take several values, and why."""
_MOST_VALUES = 1000
"""Of one list."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A field with a list of values."""

    field: str
    text: str
    options: tuple[str, ...]
    """YAML texts."""
    drawn: bool
    """One of them for a trial, at random; else all of them."""

    @property
    def ends(self) -> tuple[str, ...]:
        """The values to be checked: all of them."""
        return self.options

    def has(self, text: str) -> bool:
        """Whether this is the text of one of the values."""
        return text in self.options


@dataclass(frozen=True, slots=True)
class Range:
    """A field with a range of numbers, from which values are drawn."""

    field: str
    text: str
    name: str
    """One of RANGES."""
    low: float
    high: float
    """Of randint the first number that is no longer in it."""
    drawn: bool = True

    @property
    def ends(self) -> tuple[str, ...]:
        """The values to be checked: the lowest and the highest."""
        if self.name == "randint":
            return str(int(self.low)), str(int(self.high) - 1)
        return repr(float(self.low)), repr(float(self.high))

    def has(self, text: str) -> bool:
        """Whether this is the text of a number in the range."""
        try:
            number = int(text) if self.name == "randint" else float(text)
        except ValueError:
            return False
        return self.low <= number <= self.high


@dataclass(frozen=True, slots=True)
class Space:
    """The overrides of a sweep."""

    fixed: tuple[str, ...]
    """Those that hold for all trials."""
    varied: tuple[Listed | Range, ...]

    @property
    def drawn(self) -> bool:
        """Whether values are drawn at random; else the trials are the points of a grid."""
        return any(item.drawn for item in self.varied)

    @property
    def grid(self) -> int:
        """Points of the grid of lists."""
        return math.prod(len(item.ends) for item in self.varied if not item.drawn)

    def has(self, point: object) -> bool:
        """Whether this is a point of the space."""
        if not isinstance(point, dict) or list(point) != [item.field for item in self.varied]:
            return False
        return all(isinstance(text := point[item.field], str) and item.has(text) for item in self.varied)

    def corners(self) -> Iterator[Point]:
        """Every combination of listed values and ends of ranges."""
        names = [item.field for item in self.varied]
        for values in product(*(item.ends for item in self.varied)):
            yield dict(zip(names, values, strict=True))


def read_space(overrides: list[str]) -> Space:
    """Read the overrides of a sweep.

    Raises:
        UserError: with one line per mistake in a list or range, or where no field takes several values.
    """
    fixed, varied, problems = [], list[Listed | Range](), list[str]()
    for override in overrides:
        field, sign, text = override.partition("=")
        try:
            item = _read(field, text) if sign else None
        except ValueError as error:
            got = "a value (not shown)" if names_secret(override) else masked(text[:80])
            problems.append(f"{field[:120]}: {error}, got {got}")
            continue
        if item is None:
            fixed.append(override)
        else:
            varied.append(item)
    problems += _given_twice(fixed, varied)
    if not varied and not problems:
        problems.append(
            "a.b=VALUES: required, a field with several values, such as policy.optimizer.lr=1e-5,1e-4 or "
            "policy.optimizer.lr=loguniform(1e-6,1e-4), got none"
        )
    if problems:
        raise UserError(*problems)
    return Space(tuple(fixed), tuple(varied))


def _given_twice(fixed: list[str], varied: list[Listed | Range]) -> Iterator[str]:
    taken = [override.partition("=")[0] for override in fixed]
    for item in varied:
        if item.field in taken:
            yield f"{item.field[:120]}: must be given once in a sweep, got it again as {item.text[:80]}"
        taken.append(item.field)


def _read(field: str, text: str) -> Listed | Range | None:
    """What takes several values; None for a fixed value. Raises ValueError."""
    parts = split(text)
    call = _CALL.fullmatch(text) if len(parts) == 1 else None
    if call is None and len(parts) == 1:
        return None
    if field in _OWN:
        raise ValueError(f"must be fixed in a sweep, as {_OWN[field]}")
    if call is None:
        return Listed(field, text, _options(parts), drawn=False)
    name, inside = call[1], split(call[2])
    if name == "choice":
        return Listed(field, text, _options(inside), drawn=True)
    if name in RANGES:
        return _range(field, text, name, inside)
    near = difflib.get_close_matches(name, ["choice", *RANGES], 1, 0.7)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"must be a list, choice, uniform, loguniform or randint (a text in quotes is itself){hint}")


def _options(parts: list[str]) -> tuple[str, ...]:
    """The texts of a list. Raises ValueError."""
    found = tuple(part.strip() for part in parts)
    if not all(found):
        raise ValueError("must have a value on each side of a comma (a text with commas in quotes: '\"a, b\"')")
    if len(set(found)) < len(found):
        raise ValueError("must name each value once")
    if not 2 <= len(found) <= _MOST_VALUES:
        raise ValueError(f"must have 2 to {_MOST_VALUES} values")
    if any((call := _CALL.fullmatch(part)) and call[1] in ("choice", *RANGES) for part in found):
        raise ValueError("must be a list of values or one range, not both")
    return found


def _range(field: str, text: str, name: str, inside: list[str]) -> Range:
    """A range of numbers. Raises ValueError."""
    rule = f"must be {name}(lowest,highest)"
    try:
        values = [parse(part, field) for part in inside]
    except UserError:
        raise ValueError(f"{rule} with two numbers") from None
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 2 or len(values) != 2 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{rule} with two numbers")
    low, high = numbers
    if name == "randint" and not (isinstance(low, int) and isinstance(high, int) and high - low > 1):
        raise ValueError("must be randint(a,b) with whole numbers, for two or more numbers from a to b - 1")
    if not low < high:
        raise ValueError(f"{rule} with the lower number first")
    if name == "loguniform" and low <= 0:
        raise ValueError(f"{rule} with numbers above 0")
    return Range(field, text, name, low, high)


def split(text: str) -> list[str]:
    """The parts of a text between commas, but for those within brackets and quotes."""
    parts, depth, quote, before = [""], 0, "", ","
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and before in ",([{:":  # elsewhere it is an apostrophe
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append("")
            before = char
            continue
        parts[-1] += char
        before = before if char.isspace() else char
    return parts
