"""How run directories are read for a page: lines that grow, are torn, damaged or cut back, and nothing outside."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.page import tail as tail_module
from launch.page.files import Below, find_runs, run_of
from launch.page.metric_table import MetricTable, averaged, thinned
from launch.page.rows import encoded
from launch.page.samples import search_samples
from launch.page.step_lines import StepLines
from launch.page.tail import FileTail
from tests.page_client import append, metrics, sample, write_grpo


class Lines:
    """What a tail has given."""

    def __init__(self, path: Path) -> None:
        self.found: list[tuple[int, bytes]] = []
        self.resets = 0
        self.tail = FileTail(Below(path.parent), path, self.take, self.forget)

    def take(self, place: int, line: bytes) -> None:
        self.found.append((place, line))

    def forget(self) -> None:
        self.found.clear()
        self.resets += 1

    def read(self) -> list[bytes]:
        self.tail.read()
        return [line for _, line in self.found]


def test_a_half_written_last_line_waits(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.jsonl", Lines(tmp_path / "a.jsonl")
    assert not lines.tail.read()
    path.write_bytes(b"one\ntw")
    assert lines.read() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert lines.read() == [b"one", b"two", b"three"]
    assert [place for place, _ in lines.found] == [0, 4, 8] and lines.resets == 0


@pytest.mark.parametrize("way", ["shorter", "replaced", "truncated and longer", "removed"])
def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path, way: str) -> None:
    path, lines = tmp_path / "a.jsonl", Lines(tmp_path / "a.jsonl")
    path.write_bytes(b"one\ntwo\nthree\n")
    lines.read()
    if way == "shorter":
        os.truncate(path, 4)
    elif way == "replaced":
        (tmp_path / "new").write_bytes(b"one\n")
        os.replace(tmp_path / "new", path)
    elif way == "truncated and longer":  # between two looks: its inode is the same, and its size tells nothing
        path.write_bytes(b"ONE\nTWO\nTHREE\nFOUR\n")
    else:
        path.unlink()
    after = {"truncated and longer": [b"ONE", b"TWO", b"THREE", b"FOUR"], "removed": []}.get(way, [b"one"])
    assert (lines.read(), lines.resets) == (after, 1)


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines, read = tmp_path / "a.jsonl", Lines(tmp_path / "a.jsonl"), list[int]()
    path.write_bytes(b"x" * 50_000 + b"\n")
    lines.read()
    real = os.pread
    monkeypatch.setattr(tail_module.os, "pread", lambda file, size, at: read.append(at) or real(file, size, at))
    lines.read()
    assert read == [], "a file that has not changed is not opened"
    with path.open("ab") as file:
        file.write(b"new\n")
    assert lines.read()[-1] == b"new" and min(read) > 49_000


def test_a_line_that_never_ends_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_CHUNK", 8)
    monkeypatch.setattr(tail_module, "_LONGEST", 32)
    path, lines = tmp_path / "a.jsonl", Lines(tmp_path / "a.jsonl")
    path.write_bytes(b"one\n" + b"x" * 100 + b"\ntwo\n" + b"y" * 31 + b"\nthree\n")
    assert lines.read() == [b"one", b"two", b"y" * 31, b"three"]


def table_of(directory: Path) -> MetricTable:
    table = MetricTable(Below(directory), directory)
    table.read()
    return table


def test_metrics_without_numbers_are_gaps(tmp_path: Path) -> None:
    lines = ['{"step": 1, "a": NaN, "b": 1}', '{"step": 2, "a": Infinity}', '{"step": 3, "a": -Infinity, "b": 1e999}']
    lines += ['{"step": 4, "a": null, "b": true}', f'{{"step": 5, "a": 1{"0" * 400}, "b": "x"}}', '{"step": 6, "a": 2}']
    append(tmp_path / "metrics.jsonl", lines)
    table = table_of(tmp_path)
    found = thinned(table, ["a", "b", "c"], 0, 100)
    assert found == {
        "step": [1, 2, 3, 4, 5, 6],
        "values": {"a": [None] * 5 + [2.0], "b": [1.0] + [None] * 5, "c": [None] * 6},
    }
    assert (table.last("a"), table.last("b"), table.last("c"), table.damaged) == (2.0, 1.0, None, 0)


@pytest.mark.parametrize(
    "damage",
    [
        "", "null", "[1]", "{", '{"step": "3"}', '{"step": true}', '{"step": -1}', '{"step": 1.5}', "\0" * 40,
        '{"a": 1}', "x" * 9000, f'{{"step": 9{"9" * 30}}}', "[" * 100_000, '{"step": 1, "a": 1}', "9" * 5000,
    ],
)  # fmt: skip
def test_damaged_lines_are_skipped_and_counted(tmp_path: Path, damage: str) -> None:
    append(tmp_path / "metrics.jsonl", [metrics(1), metrics(2), damage, metrics(3)])
    table = table_of(tmp_path)
    assert table.steps.tolist() == [1, 2, 3] and table.column("reward/mean").tolist() == [0.1, 0.2, 0.3]
    assert table.damaged == bool(damage.strip("\0"))


def test_a_run_that_is_cut_back_and_goes_on_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, [metrics(step) | {"reward/mean": 0.01, "only": 1.0} for step in range(1, 31)])
    table = table_of(tmp_path)
    assert len(table.warnings) == 1 and table.warnings[0][0] == 20 and table.warnings[0][1].startswith("reward/mean is")
    kept = path.read_text().splitlines()[:10]
    path.with_suffix(".new").write_text("\n".join(kept) + "\n")
    os.replace(path.with_suffix(".new"), path)
    append(path, [metrics(11)])
    before = table.times_cut
    table.read()
    assert table.steps.tolist() == list(range(1, 12)) and table.times_cut == before + 1
    assert table.last("reward/mean") == 1.1 and math.isnan(table.column("only")[10]) and table.warnings == []


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=300), st.integers(2, 40), st.booleans())
def test_thinning_keeps_what_is_lowest_and_highest(values: list[float | None], most: int, single: bool) -> None:
    steps = np.arange(len(values))
    columns = {"a": np.array([math.nan if value is None else value for value in values]), "b": steps * 1.0}
    table: Any = SimpleNamespace(steps=steps, column=columns.get)
    found = thinned(table, ["a"] if single else ["a", "b"], 0, most)
    given_, shown = ([value for value in each if value is not None] for each in (values, found["values"]["a"]))
    assert len(found["step"]) == len(found["values"]["a"]) <= max(most, 2)
    assert found["step"] == sorted(found["step"])
    assert bool(given_) == bool(shown) and (not given_ or (min(given_), max(given_)) == (min(shown), max(shown)))
    if single:  # with its own steps, each of them once
        assert len(set(found["step"])) == len(found["step"])
        points = zip(found["step"], found["values"]["a"], strict=True)
        assert all(value is None or values[step] == value for step, value in points)


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=200), st.integers(1, 40))
def test_means_are_those_of_stretches_of_equal_length(values: list[float | None], most: int) -> None:
    column = np.array([math.nan if value is None else value for value in values])
    table: Any = SimpleNamespace(
        steps=np.arange(len(values)), column=lambda name: column if name == "a" else column * 2
    )
    found = averaged(table, ["a", "b"], 0, most)
    size = -(-len(values) // most)
    stretches = [values[start : start + size] for start in range(0, len(values), size)]
    assert found["step"] == [size * place + (len(each) - 1) // 2 for place, each in enumerate(stretches)]
    for mean, each in zip(found["values"]["a"], stretches, strict=True):
        there = [value for value in each if value is not None]
        assert mean == (pytest.approx(sum(there) / len(there)) if there else None)


def test_a_phase_that_few_steps_have_takes_its_share_of_their_stretch(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "time/step": 99.0, "time/evaluate": 90.0, "eval/reward/mean": 0.1}]
    rows += [{"step": step, "time/step": 3.0, "time/update": 1.0} for step in range(1, 20)]
    rows[10] |= {"time/evaluate": 5.0, "eval/reward/mean": 0.5}
    append(tmp_path / "metrics.jsonl", rows)
    found = averaged(table_of(tmp_path), ["time/step", "time/evaluate", "time/update", "eval/reward/mean"], 0, 4)
    assert found["step"] == [2, 7, 12, 17]
    assert found["values"] == {
        "time/step": [3.0] * 4, "time/evaluate": [0.0, 0.0, 1.0, 0.0], "time/update": [1.0] * 4,
        "eval/reward/mean": [0.1, None, 0.5, None],
    }  # fmt: skip
    assert found["counts"]["time/evaluate"] == [4, 5, 5, 5] and found["counts"]["eval/reward/mean"] == [1, 0, 1, 0]


def test_samples_are_found_by_step_also_where_lines_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append(
        path,
        [sample(1, "a"), '{"step": 1, "completion": ', sample(1, "b"), "nothing", '{"completion": "c", "step": 2}'],
    )
    lines = StepLines(Below(tmp_path), path)
    assert lines.read() and lines.steps == [1, 2] and lines.damaged == 1
    assert [row and row["completion"] for row in lines.rows(1)] == ["a", None, "b"]
    assert [lines.row(*place) for place in ((1, 3), (1, -1), (9, 0))] == [None] * 3
    found = search_samples(lines, "", status="", start=0, most=9)
    assert [(hit["step"], hit["index"]) for hit in found["hits"]] == [(1, 0), (1, 2), (2, 0)]


@pytest.mark.parametrize(
    ("text", "wanted", "is_there"),
    [
        ("The Answer", "answer", True), ('say "yes"', 'y "Y', True), ('say "yes"', ' "YES"', True),
        ("two\nlines", "o\nl", True), ("back\\slash", "k\\s", True), ("Straße", "STRASSE", True), ("答案", "案", True),
        ("\x1b[2J", "\x1b[", True), ("nothing", "u001b", False),
    ],
)  # fmt: skip
def test_search_is_of_texts_and_not_of_their_json(tmp_path: Path, text: str, wanted: str, is_there: bool) -> None:
    append(tmp_path / "samples.jsonl", [sample(1, text), json.dumps(sample(2, text))])  # the second with escapes
    lines = StepLines(Below(tmp_path), tmp_path / "samples.jsonl")
    lines.read()
    hits = search_samples(lines, wanted, status="", start=0, most=9)["hits"]
    assert [hit["step"] for hit in hits] == [1, 2] * is_there


def test_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    append(
        tmp_path / "samples.jsonl", [sample(step, "x", status="ok" if step % 2 else "truncated") for step in range(9)]
    )
    lines, steps, more = StepLines(Below(tmp_path), tmp_path / "samples.jsonl"), list[int](), 0
    lines.read()
    while more is not None:
        found = search_samples(lines, "X", status="truncated", start=more, most=2)
        steps, more = steps + [hit["step"] for hit in found["hits"]], found["more"]
    assert steps == [0, 2, 4, 6, 8]
    assert search_samples(lines, "x", status="", start=0, most=9, within_s=-1)["hits"] == [], "the time is over"


def test_runs_are_found_and_no_models_nor_what_lies_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "outputs", write_grpo(tmp_path / "outside")
    for name in ("one", "a/b/three", "a/b/c/too-deep", "one/set-aside-1"):
        write_grpo(root / name)
    (root / "empty").mkdir()
    (root / "one/metrics.jsonl").unlink()  # a run that has not begun
    (root / "model").mkdir()
    (root / "model/config.json").write_text('{"model_type": "qwen2"}')
    (root / "away").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "one")
    assert sorted(find_runs(Below(root))) == ["a/b/three", "one"]
    assert list(find_runs(Below(root / "one"))) == ["."]


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/outside",
        "away",
        "a/../../outside",
        "",
        "a//b",
        "./one",
        "one/",
        "one/..",
        "a\0b",
        "x" * 5000,
        "none",
    ],
)
def test_no_name_leads_outside(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "outputs", write_grpo(tmp_path / "outside")
    write_grpo(root / "one")
    (root / "away").symlink_to(outside)
    with pytest.raises(FileNotFoundError):
        run_of(Below(root), name.replace("/outside", str(outside)) if name == "/outside" else name)
    assert run_of(Below(root), "one") == root / "one"


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "folder", "loop"])
def test_a_file_that_is_none_or_lies_outside_is_not_read(tmp_path: Path, kind: str) -> None:
    run, secret = write_grpo(tmp_path / "outputs/one"), tmp_path / "secret/metrics.jsonl"
    append(secret, [metrics(7)])
    path = run / "metrics.jsonl"
    path.unlink()
    below = Below(tmp_path / "outputs")
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "link to a folder":
        (run / "logs").symlink_to(secret.parent)
        path = run / "logs/metrics.jsonl"
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    for read in (lambda: below.open(path), lambda: below.read(path, 100)):
        with pytest.raises(FileNotFoundError):
            read()
    assert below.stamp(path) is None and below.names(run / "logs") == []


def test_a_folder_that_becomes_a_link_at_the_last_moment_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, secret = write_grpo(tmp_path / "outputs/one"), tmp_path / "secret"
    append(secret / "driver.log", ["secret"])
    (run / "logs").symlink_to(secret)
    monkeypatch.setattr(Below, "inside", lambda self, path: path)  # as it was when it was looked at
    with pytest.raises(FileNotFoundError):
        Below(tmp_path / "outputs").open(run / "logs/driver.log")


def test_json_for_browsers_has_no_nan_and_no_lone_surrogates() -> None:
    value = {"a": [math.nan, math.inf, 1.5], "b": {"c": -math.inf}, "d": "\ud800 ok"}
    assert json.loads(encoded(value), parse_constant=pytest.fail) == {
        "a": [None, None, 1.5],
        "b": {"c": None},
        "d": "\ud800 ok",
    }
