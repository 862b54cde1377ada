"""What could be typed next of `section.field=value`, from the page of all settings.

The settings themselves take longer to import than somebody who has pressed Tab wants to wait.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LAUNCH = Path(__file__).parent.parent
_PLACES = (_LAUNCH / "shipped" / "settings.md", _LAUNCH.parent / "docs" / "settings.md")
"""Where a wheel has the page (`setup.py`), and where a clone has it."""
_ROW = re.compile(r"^\| `(?P<path>[^`]+)` \| (?P<type>[^|]*) \| .* \| (?P<jobs>[a-z, ]+) \| (?P<text>.*) \|$")
_RANGE = re.compile(r", (above|at least|below|at most) .*")
_KINDS = ("text", "number", "whole number", "section", "any value")
"""Types that are no values."""
_JOB = re.compile(
    r"^\s*\"?algorithm\"?:\s*(?:\{|\n)(?:[^#\n]|#[^\n]*+|\n(?=\s))*?\bname\"?:\s*[\"']?(\w+)", re.MULTILINE
)
_LARGEST = 2**16
"""Bytes of a configuration."""


@dataclass(frozen=True, slots=True)
class SettingWord:
    """A setting, as the page has it."""

    parts: tuple[str, ...]
    """Of its name, where N is any number and NAME any name."""
    values: tuple[str, ...]
    """All of an enumeration, and those with a name beside a number or text."""
    jobs: tuple[str, ...]
    """Those that read it; empty for all."""
    text: str
    """The first sentence about it."""


@cache
def setting_words() -> tuple[SettingWord, ...]:
    """All settings; none where the page is not there."""
    page = next((place for place in _PLACES if place.is_file()), None)
    if page is None:
        return ()
    found: list[SettingWord] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if row := _ROW.match(line):
            jobs = () if row["jobs"] == "all jobs" else tuple(row["jobs"].split(", "))
            found.append(
                SettingWord(tuple(row["path"].split(".")), _values(row["type"]), jobs, row["text"].partition(". ")[0])
            )
    return tuple(found)


def next_words(typed: str, job: str | None = None) -> dict[str, str]:
    """How `section.field=value` may go on, with what is said of it: names up to the next dot, whole ones with `=`, or
    values behind it.

    Args:
        typed: what is there of it.
        job: of the configuration; without, settings of all jobs.

    Example: next_words("policy.optimizer.l") is {"policy.optimizer.lr=": "Peak learning rate"}.
    """
    known = [word for word in setting_words() if not (job and word.jobs and job not in word.jobs)]
    name, given, value = typed.partition("=")
    if given:
        path = tuple(name.split("."))
        values = dict.fromkeys(value for word in known if _is_at(word.parts, path) for value in word.values)
        return {f"{name}={each}": "" for each in values if each.startswith(value)}
    found = _names(typed, known)
    while len(found) == 1 and next(iter(found)).endswith("."):  # a shell would take a single one for the whole word
        found = _names(next(iter(found)), known)
    return found


def _names(typed: str, known: Iterable[SettingWord]) -> dict[str, str]:
    *above, last = typed.split(".")
    begun = "".join(f"{part}." for part in above)
    found: dict[str, str] = {}
    for word in known:
        if len(word.parts) <= len(above) or not _is_at(word.parts[: len(above)], tuple(above)):
            continue
        part, leaf = word.parts[len(above)], len(word.parts) == len(above) + 1
        # A number begins with the first one; a name of the user's own cannot be told.
        shown = {"N": last if last.isdecimal() else "0", "NAME": last}.get(part, part)
        if shown and shown.startswith(last):
            found.setdefault(f"{begun}{shown}{'=' if leaf else '.'}", word.text if leaf else "")
    # What has fields is set field by field.
    return {name: text for name, text in found.items() if name.endswith(".") or f"{name[:-1]}." not in found}


def _is_at(parts: tuple[str, ...], typed: tuple[str, ...]) -> bool:
    """Whether what is typed names these parts."""
    return len(parts) == len(typed) and all(
        part in (given, "NAME") or (part == "N" and given.isdecimal()) for part, given in zip(parts, typed, strict=True)
    )


def _values(words: str) -> tuple[str, ...]:
    """Of a type in words: `one of a, b or null, at least 1` are a, b and null."""
    plain = _RANGE.sub("", words.replace("true or false", "one of true, false"))
    found: list[str] = []
    for part in plain.split(" or "):
        listed = part.removeprefix("one of ")
        if listed != part:
            found += listed.split(", ")
        elif part not in _KINDS and " of " not in part:
            found.append(part)
    return tuple(found)


def job_of(path: str) -> str | None:
    """The `algorithm.name` of a file, found without reading it as YAML; None where it is not told so."""
    try:
        with open(path, encoding="utf-8") as file:
            found = _JOB.search(file.read(_LARGEST))
    except (OSError, ValueError):
        return None
    return found and found[1]
