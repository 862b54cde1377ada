"""CSV and TSV as data: what cells hold, and one line for what is no CSV."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.conventions import read_examples
from algorithms.data.row_contents import content_of, contents_of
from algorithms.data.run_data import load_sets
from algorithms.data.sources import read_rows
from algorithms.encoder.rows import gradeds, load_named_rows, rankings, scored_pairs

TALK = [{"role": "user", "content": 'say "hi",\nplease'}, {"role": "assistant", "content": "hé"}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(file: str, *rows: list[str], delimiter: str = ",") -> None:
    with open(file, "w", encoding="utf-8", newline="") as target:
        csv.writer(target, delimiter=delimiter).writerows(rows)


def read(source: str, **columns: str) -> list[dict[str, Any]]:
    return read_rows(source, split="train", arguments={}, limit=None, field="data.train", columns=columns)


def complaint(content: str | bytes, file: str = "rows.csv") -> str:
    Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read(file)
    [problem] = error.value.problems
    assert "\n" not in problem
    return problem.removeprefix("data.train: ")


def test_rows_are_those_of_json_whatever_ends_lines_and_separates_cells() -> None:
    rows = [{"prompt": 'a "b", c\nd', "answer": "007"}, {"prompt": "é", "answer": "[1, 2]"}, {"prompt": "e"}]
    cells = [["prompt", "answer"], *([row["prompt"], row.get("answer", "")] for row in rows)]
    write("a.csv", *cells)
    write("a.tsv", *cells, delimiter="\t")
    text = Path("a.csv").read_bytes()
    Path("bom.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\r\n", b"\r\n\r\n"))
    Path("unix.csv").write_bytes(text.replace(b"\r\n", b"\n").removesuffix(b"\n"))
    Path("a.csv.gz").write_bytes(gzip.compress(text))
    Path("a.tsv.gz").write_bytes(gzip.compress(Path("a.tsv").read_bytes()))
    for file in Path().iterdir():
        assert read(str(file)) == rows, file.name


def test_an_empty_cell_is_an_absent_column() -> None:
    write("rows.csv", ["instruction", "input", "output"], ["a", "", "b"], ["c", "d", "e"])
    data = DataConfig(train="rows.csv")
    convention, rows, found, _ = read_examples(load_sets(data, "data.train")[""], data, "sft", "data.train")
    assert convention.name == "alpaca" and rows[0].keys() == {"instruction", "output"}
    assert [each.prompt for each in found.values()] == ["a", "c\n\nd"]


def test_structured_columns_hold_json_and_texts_may_begin_with_brackets() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    write("chat.csv", ["messages", "tools", "answer"], [json.dumps(TALK), json.dumps(tools), json.dumps(TALK)])
    assert read("chat.csv") == [{"messages": TALK, "tools": tools, "answer": json.dumps(TALK)}]
    texts = ["[INST] hi [/INST]", "[3, 1, 2]", '{"a": 1}', '[{"name": "Rome"}]', "{1, 2} is a set", "[[a]]"]
    write("texts.csv", ["prompt", "completion"], *([text, text] for text in texts))
    assert [row["prompt"] for row in read("texts.csv")] == [row["completion"] for row in read("texts.csv")] == texts
    write("mixed.csv", ["prompt", "chosen", "rejected"], ["a", json.dumps(TALK[1:]), " " + json.dumps(TALK[1:])])
    assert read("mixed.csv") == [{"prompt": "a", "chosen": TALK[1:], "rejected": TALK[1:]}]
    assert read("mixed.csv", messages="prompt")[0]["prompt"] == "a"


def test_numbers_are_read_where_conventions_need_them_under_any_name() -> None:
    write("kto.csv", ["prompt", "completion", "label", "n"], ["1", "2", "True", "1"], ["3", "4", "0", "2"])
    assert [(row["prompt"], row["label"], row["n"]) for row in read("kto.csv")] == [("1", True, "1"), ("3", 0, "2")]
    write("named.csv", ["prompt", "completion", "good"], ["a", "b", "false"], ["c", "d", "1"], ["e", "f", "yes"])
    assert [row["good"] for row in read("named.csv")] == ["false", "1", "yes"]
    assert [row["good"] for row in read("named.csv", label="good")] == [False, 1, "yes"]
    data = DataConfig(train="named.csv", columns={"label": "good"}, limit=2)
    _, _, found, _ = read_examples(load_sets(data, "data.train")[""], data, "unpaired", "data.train")
    assert [each.desirable for each in found.values()] == [False, True]
    write("margin.csv", ["chosen", "rejected", "margin"], ["a b", "a c", "-1.5e-1"], ["a b", "a c", "nan"])
    assert [row["margin"] for row in read("margin.csv")] == [-0.15, "nan"]
    with pytest.raises(UserError, match="row 2: column margin must be a finite number, got text 'nan'"):
        read_examples(read("margin.csv"), DataConfig(train="margin.csv"), "pairs", "data.train")


def test_embedding_data_may_be_lists_or_columns() -> None:
    write("lists.csv", ["query", "pos", "neg"], ["q", "p", '["[1] n", "m"]'])
    [row] = rankings(read("lists.csv"), DataConfig(train="lists.csv"), "data.train")
    assert (row.positives, row.negatives) == (("p",), ("[1] n", "m"))
    write("graded.csv", ["query", "documents", "scores"], ["q", '["a", "b"]', "[1, 0.5]"])
    [graded] = gradeds(read("graded.csv"), DataConfig(train="graded.csv"), "data.train", targets="scores")
    assert (graded.passages, graded.labels) == (("a", "b"), (1, 0.5))


def test_all_who_read_a_set_know_its_renames() -> None:
    """Else a checkpoint would tell other rows than the run had."""
    write("alike.csv", ["sentence1", "sentence2", "likeness"], ["a", "b", "0.5"], ["c", "d", "1"])
    data = DataConfig(train="alike.csv", columns={"score": "likeness"})
    rows = load_named_rows(data, "data.train")[""]
    assert [pair.score for pair in scored_pairs(rows, data, "data.train")] == [0.5, 1]
    contents = contents_of(data, ["data.train"], 60)
    assert contents == {"data.train": content_of(rows)} != {"data.train": content_of(read("alike.csv"))}


def test_a_cell_may_be_large_and_the_parsers_own_limit_stays() -> None:
    write("large.csv", ["prompt", "answer"], ["x" * 200_000, "y"], ["x" * 200_001, "z"])
    before = csv.field_size_limit(1000)
    try:
        rows = iter(read("large.csv"))
        assert len(next(rows)["prompt"]) == 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


WRONG = {
    "quote": ('a,b\n1,2\n"3,4\n5,6\n', "line 3 of rows.csv must close its quotes, got a quote that is never closed"),
    "quote, megabytes": (
        'a,b\n"' + "1,2\n" * 2**21,
        "line 2 of rows.csv must be smaller than 4 MiB, got a larger row (is a quote not closed?)",
    ),
    "a row of megabytes": ("a\n" + "x" * 2**23, "line 2 of rows.csv must be smaller than 4 MiB, got a larger row"),
    "single quote": ('a,b\n"x" y",2\n', 'line 2 of rows.csv must double the quotes within a quoted cell (""), got a'),
    "more": ('a,b\n"1\n\n2",3\n4,5,6\n', "line 5 of rows.csv must have 2 cells, as line 1 has, got 3"),
    "fewer": ("\na,b\n1,2\n\n3\n", "line 5 of rows.csv must have 2 cells, as line 2 has, got 1"),
    "twice": ("a,b,a\n1,2,3\n", "line 1 of rows.csv must have each column once, got 'a' twice"),
    "index": (",a\n0,1\n", "line 1 of rows.csv must name every column (pandas leaves its index out with index=False)"),
    "no name": ("a,b,\n0,1,2\n", "line 1 of rows.csv must name every column, got no name for column 3"),
    "null byte": ("a,b\n1,2\n3,\0\n", "line 3 of rows.csv must be text, got a null byte"),
    "latin-1": ("a\né\n".encode("latin-1"), "line 2 of rows.csv is not UTF-8 text"),
    "utf-16": ("a\nb\n".encode("utf-16"), "line 1 of rows.csv is not UTF-8 text"),
    "carriage return": ("a,b\r1,2\r", "line 1 of rows.csv must end its lines with a line feed, got a carriage return"),
    "semicolons": ("a;b\n1;2\n", "line 1 of rows.csv must be separated by commas, as rows.csv is called, got semi"),
    "empty": ("", "must hold at least one row, got none from rows.csv"),
    "header only": ("a,b\n", "must hold at least one row, got none from rows.csv"),
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid\n", "rows.csv must hold the rows, is a pointer of"),
    "page": ("<!DOCTYPE html>\n<html>\n", "rows.csv must hold the rows, is a web page, not the file itself"),
    "python's list": (
        "messages\n\"[{'role': 'user', 'content': 'a'}]\"\n",
        "line 2 of rows.csv must hold JSON, whose quotes are double, in column messages, got \"[{'role': 'user'",
    ),
    "python's list, of a prompt": ("prompt\n\"[{'role': 'user'}]\"\n", "line 2 of rows.csv must hold JSON, whose"),
    "python's texts": ("query,neg\na,\"['b', 'c']\"\n", "line 2 of rows.csv must hold JSON, whose quotes are double"),
    "not JSON's": (
        'tools\n"[{""a"": NaN}]"\n',
        "line 2 of rows.csv is not valid JSON, which has no NaN in column tools",
    ),
    "deep": (
        "tools\n" + "[" * 99_999 + "\n",
        "line 2 of rows.csv is not valid JSON in column tools (nested too deeply)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_csv_is_one_line(case: str) -> None:
    content, message = WRONG[case]
    assert complaint(content).startswith(message)
    assert csv.field_size_limit() == 131_072


def test_tabs_and_expansion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint("a,b\n1,2\n", "rows.tsv").startswith("line 1 of rows.tsv must be separated by tabs, as rows.tsv")
    monkeypatch.setattr("algorithms.data.row_files._EXPANDED_BYTES", 2**16)
    trap = gzip.compress(b"a\n" + b"b\n" * 2**17)
    assert complaint(trap, "rows.csv.gz").startswith(
        "rows.csv.gz must hold at most 200 times its size, got a file that"
    )
