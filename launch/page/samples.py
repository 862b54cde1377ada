"""Completions of a run as a page shows them: groups of a step side by side, what a search finds, held-out prompts."""

import json
import time
from pathlib import Path
from typing import Any

from launch.page.files import Below
from launch.page.rows import encoded, number, parsed_row, text, whole_number
from launch.page.step_lines import Row, StepLines
from launch.page.tail import FileTail

SHOWN_CHARACTERS, MOST_CHARACTERS = 20_000, 2_000_000
"""Of a completion within its group, and alone."""
_AROUND = 120
"""Characters on either side of what was searched for."""
_SEARCH_S = 2.0
"""After so many seconds a search gives what it has, and where to go on."""
_PROMPT_CHARACTERS = 500
"""Of a prompt in a list."""
_OWN = frozenset(
    (
        *("step", "group", "sample", "row", "prompt", "completion", "reward", "rewards", "advantage", "length"),
        *("status", "version", "turns", "turn_rewards"),
    )
)
"""Names in a row that are no columns of the data, which rows of evaluations have apart."""


def shown_groups(rows: list[Row | None], with_tokens: set[tuple[int, int]]) -> list[dict[str, Any]]:
    """The samples of a step, those of a prompt side by side; `with_tokens`: (group, sample) of those that have any."""
    found: dict[object, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        if row is None:
            continue
        prompt, place = text(row.get("prompt"), MOST_CHARACTERS), place_of(row)
        # Rows of older versions do not say their group.
        key = prompt if place is None else place[0]
        if key not in found:
            cut = {"prompt_cut": True} if len(prompt) > SHOWN_CHARACTERS else {}
            row_number = whole_number(row.get("row"))
            found[key] = {"prompt": prompt[:SHOWN_CHARACTERS], "row": row_number, "samples": []} | cut
        shown = shown_sample(row, index, SHOWN_CHARACTERS) | {"tokens": place in with_tokens}
        found[key]["samples"].append(shown)
    return list(found.values())


def place_of(row: Row) -> tuple[int, int] | None:
    """Number of the group within the step, and of the sample within the group; None where the row does not say."""
    group, sample = whole_number(row.get("group")), whole_number(row.get("sample"))
    return None if group is None or sample is None else (group, sample)


def shown_sample(row: Row, index: int, most: int) -> dict[str, Any]:
    """A sample for a page, its texts cut to `most` characters; `cut` is there where the completion was."""
    completion, columns = text(row.get("completion"), 2**31), row.get("columns")
    given = columns if isinstance(columns, dict) else {name: row[name] for name in row if name not in _OWN}
    found = {
        "index": index,
        "group": whole_number(row.get("group")),
        "sample": whole_number(row.get("sample")),
        "completion": completion[:most],
        "reward": number(row.get("reward")),
        "rewards": rewards_of(row),
        "advantage": number(row.get("advantage")),
        "length": whole_number(row.get("length")),
        "status": text(row.get("status"), 80),
        "version": whole_number(row.get("version")),
        "turns": whole_number(row.get("turns")),
        "columns": {str(name): _short(value, most) for name, value in given.items()},
    }
    return found | ({"cut": True} if len(completion) > most else {})


def rewards_of(row: Row) -> dict[str, float | None]:
    """Rewards by source."""
    found = row.get("rewards")
    return {str(name): number(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _short(value: object, most: int) -> object:
    """A column's value, as a text where it is long."""
    try:
        written = value if isinstance(value, str) else encoded(value).decode()
    except RecursionError:
        return "nested too deeply to be shown"
    return value if len(written) <= most else written[:most]


def search_samples(
    lines: StepLines, wanted: str, *, status: str, start: int, most: int, within_s: float = _SEARCH_S
) -> dict[str, Any]:
    """Samples whose prompt or completion holds a text, whatever its case: `{"hits": [...], "more": place or None}`.

    Args:
        lines: of samples.jsonl, up to date.
        wanted: the text; empty: all.
        status: only samples with this one; empty: all.
        start: place in the file at which to go on, as `more` of the answer before has it; 0: its beginning.
        most: hits.
        within_s: seconds after which it gives what it has.

    Raises:
        FileNotFoundError: there is no such file.
    """
    hits: list[dict[str, Any]] = []
    folded, until = wanted.casefold(), time.monotonic() + within_s
    # As it stands in the file: what has it not need not be parsed.
    written = json.dumps(wanted, ensure_ascii=False)[1:-1].casefold()
    for place, step, index, line in lines.lines(start):
        if len(hits) >= most or time.monotonic() > until:
            return {"hits": hits, "more": place}
        if written not in line.decode("utf-8", "replace").casefold() and b"\\u" not in line:
            continue
        row = parsed_row(line)
        if row is None:
            continue
        if (not status or row.get("status") == status) and (hit := _hit(row, folded)):
            place_in_step = {name: whole_number(row.get(name)) for name in ("group", "sample")}
            hits.append({"step": step, "index": index, **place_in_step, **hit})
    return {"hits": hits, "more": None}


def _hit(row: Row, folded: str) -> dict[str, str] | None:
    prompt, completion = text(row.get("prompt"), MOST_CHARACTERS), text(row.get("completion"), MOST_CHARACTERS)
    place = completion.casefold().find(folded)
    if place < 0 and folded not in prompt.casefold():
        return None
    start, end = max(0, place - _AROUND), max(0, place) + len(folded) + _AROUND
    return {"prompt": prompt[:_PROMPT_CHARACTERS], "completion": completion[start:end]}


class HeldOut:
    """The completions of held-out prompts, by prompt: eval_samples.jsonl, read on as it grows.

    Args:
        below: directory that the file must lie in.
        directory: of the run.
    """

    def __init__(self, below: Below, directory: Path) -> None:
        self._below, self._path = below, directory / "eval_samples.jsonl"
        self._tail = FileTail(below, self._path, self._take, self._forget)
        self._forget()

    def read(self) -> bool:
        """Take what is new; returns whether there is a file."""
        return self._tail.read()

    def prompts(self) -> list[dict[str, Any]]:
        """`{"number", "prompt"}` of each, in the order in which they came."""
        return [{"number": which, "prompt": prompt} for which, (prompt, _) in enumerate(self._found.values())]

    def steps(self, which: int) -> dict[str, Any] | None:
        """A prompt, and its completion in each evaluation; of several, all. None where there is no such prompt.

        Raises:
            FileNotFoundError: the file is gone.
        """
        if not 0 <= which < len(self._found):
            return None
        _, places = list(self._found.values())[which]
        rows = [parsed_row(self._below.read(self._path, length, end=start + length)) for start, length in places]
        found = [row for row in rows if row is not None]
        return {
            "prompt": text(found[0].get("prompt"), SHOWN_CHARACTERS) if found else "",
            "steps": [
                {
                    "step": row["step"],
                    "completion": text(row.get("completion"), SHOWN_CHARACTERS),
                    "reward": number(row.get("reward")),
                }
                for row in found
            ],
        }

    def _take(self, place: int, line: bytes) -> None:
        row = parsed_row(line)
        if row is None:
            self.damaged += bool(line.strip(b"\0\r "))
            return
        prompt = text(row.get("prompt"), MOST_CHARACTERS)
        # Rows may have equal prompts, and other answers.
        key = whole_number(row.get("row")), hash(prompt)
        _, places = self._found.setdefault(key, (prompt[:_PROMPT_CHARACTERS], []))
        places.append((place, len(line)))

    def _forget(self) -> None:
        self._found: dict[tuple[int | None, int], tuple[str, list[tuple[int, int]]]] = {}
        """Number of the data row and its prompt -> the prompt's beginning, and places of its rows in the file."""
        self.damaged = 0
