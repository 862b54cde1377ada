"""Null is absent: the same rows from every source are equal, whatever a table fills in."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.conventions import read_examples
from algorithms.data.row_nulls import without_nulls
from algorithms.data.sources import read_rows
from algorithms.encoder.rows import rankings

CALL = {"type": "function", "function": {"name": "add", "arguments": {"left": 1, "right": 2}}}
OTHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}


def turns(*contents: str | None, calls: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Messages that take turns, the last one with calls; of what a message has not, there is no key."""
    roles = ("user", "assistant", "tool", "assistant")
    found = [
        {"role": role} | ({} if text is None else {"content": text})
        for role, text in zip(roles, contents, strict=False)
    ]
    return [*found[:-1], found[-1] | ({} if calls is None else {"tool_calls": calls})]


def tool(name: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": sorted(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


NUMBER, TEXT = {"type": "number"}, {"type": "string", "description": "where", "enum": ["Bonn", "Rome"]}
ROWS: list[dict[str, Any]] = [
    {
        "messages": turns("and in Bonn?", None, calls=[OTHER, CALL]),
        "tools": [tool("weather", city=TEXT), tool("add", left=NUMBER, right=NUMBER)],
        "margin": 0.5,
        "scores": [1.0, None],
        "note": {"by": "x", "at": {"day": 3}},
    },
    {"messages": turns("1 + 2?", None, calls=[CALL]), "tools": [tool("add", left=NUMBER, right=NUMBER)]},
    {"messages": turns("hi", "hello"), "margin": 0.25},
    {"messages": turns("a", "b", "c", "d")},
    {"messages": turns("e", "f"), "margin": 2.0, "note": {"by": "y"}},
    {"messages": turns("g", ""), "note": {"at": {"hour": 4}}},
]
"""The first row has all columns: `datasets` takes no others."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(source: str, converter: str | None = None, **columns: str) -> list[dict[str, Any]]:
    keys: dict[str, Any] = {"split": "train", "arguments": {}, "limit": None, "field": "data.train"}
    return read_rows(source, converter=converter, columns=columns, **keys)


def write(rows: list[Any], file: str = "rows.jsonl") -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_same_rows_are_equal_from_every_source() -> None:
    write(ROWS)
    Path("rows.json").write_text(json.dumps(ROWS))
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet("rows.parquet")
    filled = table[2]
    assert filled["tools"] is None and filled["messages"][0]["tool_calls"] is None, "Arrow fills in"
    assert set(table[1]["tools"][0]["function"]["parameters"]["properties"]) == {"city", "left", "right"}
    write(table.to_list(), "filled.jsonl")
    Path("table.py").write_text(
        "import datasets\n"
        "def rows(split):\n    yield from datasets.Dataset.from_parquet('rows.parquet')\n"
        "def same(row):\n    return row\n"
        "def nulls(row):\n    return row | {'a': None}\n"
    )
    for source in ("rows.jsonl", "rows.json", "rows.parquet", "table.py:rows"):
        assert read(source) == ROWS, source
    for converter in ("table.py:same", "table.py:nulls"):
        assert read("rows.parquet", converter) == ROWS
    assert [[turn.keys() for turn in row["messages"]] for row in read("filled.jsonl")] == [
        [turn.keys() for turn in row["messages"]] for row in ROWS
    ]


def test_json_says_what_it_means_but_for_columns_and_messages() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": '{"after": null}'}}
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    case = {"input": None, "output": 1}
    write([{"messages": [{"role": "user", "content": "a"}, said], "cases": [case], "case": case, "hint": None}])
    [row] = read("rows.jsonl")
    assert row == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}],
        "cases": [case],
        "case": case,
    }
    _, _, found, _ = read_examples([row], DataConfig(train="rows.jsonl"), "sft", "data.train")
    assert found[0].messages[1]["tool_calls"][0]["function"]["arguments"] == {"after": None}


def test_rows_are_not_changed_where_their_maker_has_them() -> None:
    row = {"a": None, "b": {"c": None, "d": [None, {"e": None}]}, "f": [{"role": "user", "content": None}, 3]}
    before = json.dumps(row)
    assert without_nulls(row, filled=True) == {"b": {"d": [None, {}]}, "f": [{"role": "user"}, 3]}
    assert without_nulls(row, filled=False, kept=("a",)) == {"a": None, "b": row["b"], "f": [{"role": "user"}, 3]}
    assert json.dumps(row) == before


def test_a_column_that_is_null_is_one_that_the_row_lacks() -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    write([pair | {"margin": None}] * 2)
    _, _, pairs, _ = read_examples(read("rows.jsonl"), DataConfig(train="rows.jsonl"), "pairs", "data.train")
    assert [each.margin for each in pairs.values()] == [0, 0]
    write([pair | {"margin": 1}, pair | {"margin": None}])
    with pytest.raises(UserError, match="row 2: lacks column 'margin' of the pairs convention"):
        read_examples(read("rows.jsonl"), DataConfig(train="rows.jsonl"), "pairs", "data.train")


def test_a_renamed_column_may_be_null() -> None:
    """What may be absent under its own name may be null under another one."""
    rows = [{"instruction": "a", "context": None, "output": "b"}, {"instruction": "c", "context": "d", "output": "e"}]
    write(rows)
    data = DataConfig(train="rows.jsonl", columns={"input": "context"})
    _, _, found, _ = read_examples(read("rows.jsonl", **data.columns), data, "sft", "data.train")
    assert [each.prompt for each in found.values()] == ["a", "c\n\nd"]


@pytest.mark.parametrize("first", [None, "say: "])
def test_a_row_need_not_have_an_instruction_of_its_own(first: str | None) -> None:
    rows = [{"query": "q", "pos": "p", "prompt": prompt} for prompt in (first, "find: ", None)]
    datasets.Dataset.from_list(rows).to_parquet("rows.parquet")
    found = rankings(read("rows.parquet"), DataConfig(train="rows.parquet"), "data.train")
    assert [row.prompt for row in found] == [first, "find: ", None]
