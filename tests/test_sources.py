"""Rows from every kind of source, and one-line errors for bad ones."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.data.sources import read_rows
from algorithms.user.code import load_function

ROWS = [{"prompt": "é\u2028", "n": 1}, {"prompt": "b", "n": None}]


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source: str, limit: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
    return read_rows(source, split="train", arguments=arguments, limit=limit, field="data.train")


def complaint(function: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_file_type_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in tmp_path.iterdir():
        assert read(str(path)) == [ROWS[0], {"prompt": "b"}], path.name
        assert read(str(path), limit=1) == ROWS[:1], path.name


def test_generators_come_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rows.py").write_text(
        "def count(split, n):\n    for i in range(n):\n        yield {'text': split + str(i)}"
    )
    assert read(f"{tmp_path}/my_rows.py:count", n=2) == [{"text": "train0"}, {"text": "train1"}]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry != str(tmp_path)])
    assert read("my_rows:count", limit=1, n=10**9) == [{"text": "train0"}]
    assert "has no function cuont (did you mean count?)" in complaint(read, "my_rows.py:cuont")
    assert "data.arguments: got an unexpected keyword argument 'm'" in complaint(read, "my_rows.py:count", n=1, m=2)
    assert "raised TypeError" in complaint(read, "my_rows.py:count", n="x")
    assert "no module named my_rosw (did you mean my_rows?), got my_rosw:count" in complaint(read, "my_rosw:count")
    assert "(did you mean my_rows.py?)" in complaint(read, "my_rosw.py:count")


def test_a_converter_that_fails_is_one_line_with_row_and_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "rows.jsonl", {"n": 1}, {"n": 0}, {"n": 5})
    (tmp_path / "convert.py").write_text(
        "def keep(row):\n    return {'n': 1 // row['n']} if row['n'] else None\n"
        "def divide(row):\n    return {'n': 1 // row['n']}\n"
        "def drop(row):\n    pass\n"
        "def split(row):\n    return [row] if row['n'] == 5 else row\n"
    )

    def convert(name: str, limit: int | None = None) -> list[dict[str, Any]]:
        keys: dict[str, Any] = {"split": "train", "arguments": {}, "limit": limit, "field": "data.eval"}
        return read_rows("rows.jsonl", converter=name, **keys)

    assert convert("convert.py:keep") == [{"n": 1}, {"n": 0}]
    told: list[str] = []
    keys: dict[str, Any] = {"split": "train", "arguments": {}, "field": "data.eval", "converter": "convert.py:keep"}
    read_rows("rows.jsonl", limit=None, told=told, **keys)
    read_rows("rows.jsonl", limit=1, told=told, **keys)
    assert told == [f"data.eval: convert.py:keep kept {kept} rows" for kept in ("2 of 3", "1 of 1")]
    assert convert("convert:divide", limit=1) == [{"n": 1}], "rows beyond the limit are not converted"
    expected = {
        "convert.py:divide": "convert.py:divide raised ZeroDivisionError: integer division or modulo by zero",
        "convert.py:drop": "must keep at least one row of data.eval, convert.py:drop dropped all 3",
        "convert.py:split": "must return an object with named columns or None, got a list [{'n': 5}] for row 3",
        "convert.py:kep": "convert.py has no function kep (did you mean keep?)",
        "covnert.py:keep": "no such file covnert.py (did you mean convert.py?), got covnert.py:keep",
        "nowhere.at_all:keep": "no module named nowhere, got nowhere.at_all:keep",
        "keep": "must be path.py:function or module:function, got keep",
    }
    for name, message in expected.items():
        assert complaint(convert, name).startswith(f"data.converter: {message}")
    assert complaint(convert, "convert.py:divide").endswith("(convert.py line 4) for row 2 of data.eval")


def test_the_example_converter_takes_text_apart_or_drops_it() -> None:
    convert = load_function(f"{Path(__file__).parents[1]}/examples/hh_rlhf.py:to_messages", "data.converter")
    good, bad = "\n\nHuman: a b\n\nc\n\nAssistant: no", "\n\nHuman: a b\n\nc\n\nAssistant:  Human: yes\n"
    ask = {"role": "user", "content": "a b\n\nc"}
    assert convert({"chosen": good, "rejected": bad}) == {
        "chosen": [ask, {"role": "assistant", "content": "no"}],
        "rejected": [ask, {"role": "assistant", "content": "Human: yes"}],
    }
    for malformed in (
        good,
        "",
        "\n\nAssistant: no",
        "\n\nHuman: a b\n\nc\n\nAssistant: ",
        "\n\nHuman: a b\n\nc",
        "\n\nHuman: other\n\nAssistant: no",
        "Hello" + bad,
        bad + "\n\nAssistant: more",
        bad + "\n\nHuman: and\n\nAssistant: more",
    ):
        assert convert({"chosen": good, "rejected": malformed}) is None, malformed


def test_bad_files_are_one_line_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "train.jsonl", {"a": 1})
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n\n{"a": }\n')
    (tmp_path / "cut.json").write_text('[\n{"a": 1},\n{"a" 2}]')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-9])
    (tmp_path / "latin.jsonl").write_bytes('{"a": 1}\n{"a": "é"}'.encode("latin-1"))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "shadow").touch()
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.txt").write_text("a,b")
    lines(tmp_path / "list.jsonl", {"a": 1}, [1])
    expected = {
        "trian.jsonl": "no such file (did you mean train.jsonl?), got trian.jsonl",
        "shadow.jsonl": "no such file, got shadow.jsonl",
        "rows.tx": "no such file (did you mean rows.txt?)",
        "nowhere/rows.jsonl": "no such file, got nowhere/rows.jsonl",
        "rows.txt": "file type must be one of .jsonl",
        ".": "must hold files of one type, got cut.json and cut.jsonl",
        "empty.jsonl": "must hold at least one row",
        "cut.jsonl": "line 3, column 7 of cut.jsonl is not valid JSON (expecting value)",
        "cut.json": "line 3, column 6 of cut.json is not valid JSON (expecting ':' delimiter)",
        "cut.jsonl.gz": "cut.jsonl.gz cannot be read",
        "latin.jsonl": "line 2 of latin.jsonl is not UTF-8 text",
        "cut.parquet": "cut.parquet cannot be read as Parquet",
        "list.jsonl": "row 2 must be an object with named columns, got a list [1]",
    }
    for source, message in expected.items():
        assert complaint(read, source).startswith(f"data.train: {message}")


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = complaint(read, "tandem-tests/never-published")
    assert message.startswith("data.train: no such file, and the hub cannot give a dataset of this name, split train")
