"""What is seen of faults: a line when one is noticed, one when it is over, and a table in the end; else nothing."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from launch.config import validate
from launch.screen.display import Display
from launch.screen.faults import fault_lines, kinds_of
from launch.screen.summary import last_screen
from launch.tracking.events import Events, Fault, read_events

ROWS = [
    {"step": 1, "time/lost": 0.0, "time/effective": 1.0, "time/elapsed": 20.0},
    {"step": 2, "time/lost": 12.5, "time/effective": 0.95, "time/elapsed": 250.0},
    {"step": 3, "time/lost": 28.25, "time/effective": 0.9731, "time/elapsed": 1515.0},
]
FAULTS = [  # who, what, seconds until it was noticed, seconds that it stood, what was done, steps made again
    ("rollout[1]", "died", 0.75, 9.0, "restarted", 0),
    ("rollout[0]", "died", 1.25, 14.0, "restarted", 0),
    ("rollout[1]", "died", 0.25, 11.5, "restarted", 0),
    ("rollout[1]", "froze", 4.0, 19.5, "restarted", 0),
    ("policy[0]", "died", None, 22.25, "rebuilt", 0),
    ("policy[1]", "died", 0.5, 31.0, "rebuilt", 2),
    ("driver", "died", None, 1531.0, "resumed", 1),
]


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def happened(directory: Path, display: Display | None = None) -> list[dict[str, Any]]:
    """The lines of events after all of FAULTS, one that was given up and one that is not over."""
    clock = Clock()
    events = Events(directory, told=display.note if display else None, clock=clock)
    events.step, events.phase = 12, "rollout"
    for generation, (who, what, noticed_s, stood_s, did, redone) in enumerate(FAULTS):
        by = "silent" if what == "froze" else "exit"
        fault = Fault(who=who, what=what, noticed_by=by, noticed_s=noticed_s, generation=generation)
        number = events.noticed(fault, did.replace("ed", "ing"))
        clock.now += stood_s - (noticed_s or 0)
        events.recovered(number, did, redone_steps=redone)
    number = events.noticed(Fault(who="policy[0]", what="died", noticed_by="call", generation=9))
    events.given_up(number, "4 in a row")
    events.noticed(Fault(who="reward", what="died", noticed_by="exit", noticed_s=0.5))
    return read_events(directory / "events.jsonl")


def test_a_table_of_kinds_with_medians_and_what_was_done(tmp_path: Path) -> None:
    assert fault_lines(happened(tmp_path), ROWS, 200) == [
        "faults:          times  noticed  at most    stood  at most  done",
        "  policy died        3    0.5 s    0.5 s   22.2 s   31.0 s  2 rebuilt, 1 given up, 2 steps again",
        "  rollout died       3    0.8 s    1.2 s   11.5 s   14.0 s  restarted",
        "  driver died        1        -        -  1,531 s  1,531 s  resumed, 1 step again",
        "  reward died        1    0.5 s    0.5 s        -        -  not over",
        "  rollout froze      1    4.0 s    4.0 s   19.5 s   19.5 s  restarted",
        "effective training time 97.3 % (41 s lost)",
    ]


def test_where_it_is_narrow_each_kind_is_a_sentence(tmp_path: Path) -> None:
    assert fault_lines(happened(tmp_path), ROWS, 60) == [
        "faults:  policy died 3 times, noticed after 0.5 s,",
        "           stood 22.2 s (at most 31.0 s), 2 rebuilt, 1 given",
        "           up, 2 steps again",
        "         rollout died 3 times, noticed after 0.8 s",
        "           (at most 1.2 s), stood 11.5 s (at most 14.0 s),",
        "           restarted",
        "         driver died 1 time, stood 1,531 s, resumed, 1 step",
        "           again",
        "         reward died 1 time, noticed after 0.5 s, not over",
        "         rollout froze 1 time, noticed after 4.0 s,",
        "           stood 19.5 s, restarted",
        "effective training time 97.3 % (41 s lost)",
    ]


@pytest.mark.parametrize("width", range(50, 130, 7))
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cut(tmp_path: Path, width: int) -> None:
    lines = fault_lines(happened(tmp_path), ROWS, width)
    assert max(map(cell_len, lines)) <= width and not any("..." in line for line in lines)
    assert "1,531 s" in "\n".join(lines) and "97.3 %" in lines[-1]
    assert not any("..." in line for line in fault_lines(read_events(tmp_path / "events.jsonl"), ROWS, width // 4))


@pytest.mark.parametrize(
    ("lost", "effective", "said"),
    [
        (0.04, 0.99999, "99.9 % (0.0 s lost)"),  # not 100 %
        (3.21, 0.9, "90.0 % (3.2 s lost)"),
        (123_456.0, 0.00049, "0.0 % (123,456 s lost)"),
        (0.0, 1.0, "100.0 % (0.0 s lost)"),  # what is mended beside other work costs nothing
    ],
)
def test_the_share_of_time_that_was_not_lost(tmp_path: Path, lost: float, effective: float, said: str) -> None:
    rows = [{"step": 0, "time/lost": 0.0, "time/effective": 1.0}]
    rows += [{"step": 1, "time/lost": lost, "time/effective": effective}, {"step": 2}]
    assert fault_lines(happened(tmp_path), rows, 100)[-1] == f"effective training time {said}"


def test_a_share_that_is_not_known_is_not_told(tmp_path: Path) -> None:
    """Before the first step, and of a run that has begun with a version that did not count it."""
    lines = happened(tmp_path)
    for rows in ([], [{"step": 1, "time/step": 2.0}], [{"step": 1, "time/effective": None}]):
        assert fault_lines(lines, rows, 100) == fault_lines(lines, ROWS, 100)[:-1]


def test_where_nothing_failed_nothing_is_said(tmp_path: Path) -> None:
    assert fault_lines(read_events(tmp_path / "events.jsonl"), ROWS, 100) == []
    assert kinds_of([]) == []


def written(directory: Path, rows: list[dict[str, Any]]) -> Any:
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 3},
            "model": {"init": {}},
            "data": {"train": "rows.jsonl"},
            "run": {"output": str(directory.parent), "name": directory.name},
        }
    )


@pytest.mark.parametrize("faults", [True, False])
def test_the_last_screen_has_the_table(tmp_path: Path, faults: bool) -> None:
    config = written(tmp_path / "run", [row | {"loss/nll": 1.0} for row in ROWS])
    if faults:
        happened(config.directory)
    display = Display(Console(file=io.StringIO(), width=200))
    text = "\n".join(last_screen(config, display, "done", finished=True, curves=None))
    assert ("\nfaults: " in text) == faults == ("effective training time 97.3 % (41 s lost)\nmetrics: " in text)


@pytest.mark.parametrize(
    ("terminal", "width", "options"),
    [(True, 60, {}), (True, 200, {}), (False, 80, {}), (True, 60, {"no_color": True, "color_system": None})],
)
def test_faults_are_told_as_they_happen(tmp_path: Path, terminal: bool, width: int, options: dict[str, Any]) -> None:
    """On a terminal in lines of its width, else in whole ones; without colours there is no escape at all."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, highlight=False, soft_wrap=True, **options)
    happened(tmp_path, display := Display(console))
    display.close()
    text = output.getvalue()
    assert "\x1b" not in text
    told = "step 12, rollout: rollout[1] froze (noticed by its silence after 4.0 s): restarting"
    if terminal and width < len(told):
        assert "step 12, rollout: rollout[1] froze (noticed by its silence\n  after 4.0 s): restarting\n" in text
        assert max(map(len, text.splitlines())) < width
    else:
        assert f"{told}\n" in text
    assert "\nrollout[1] is back after 9.0 s\n" in text and "policy[0] is given up after 0.0 s: 4 in a row\n" in text
    assert text.count("is back after") == len(FAULTS)
