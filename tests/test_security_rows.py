"""Files of others that hold far more than their size tells are refused before memory or time is spent on them."""

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from actors.config import UserError
from algorithms.data import row_files, row_parquet
from algorithms.data.row_files import rows_of_file
from algorithms.data.sources import read_rows
from launch.kube.validate import check_manifest_file
from launch.settings.file import apply_overrides, parse

TOO_FAR = "must hold at most 200 times its size, got a file that expands to more"


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 1 MiB in place of 256, so that harmless files show it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(row_files, "_EXPANDED_BYTES", 2**20)


def problem(name: str) -> str:
    with pytest.raises(UserError) as caught:
        list(rows_of_file(Path(name), "data.train"))
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("blank.jsonl.gz", b"\n" * 2**22),
        ("rows.jsonl", b'{"a": 1}\n' * 2**19),
        ("list.json.gz", b"[" + b" " * 2**22 + b"]"),
        ("row.jsonl.gz", b'{"a": "' + b"x" * (2**22 - 100) + b'"}'),
    ],
)
def test_a_gzip_that_expands_without_bound_is_one_line(name: str, content: bytes) -> None:
    Path(name).write_bytes(gzip.compress(content))
    assert problem(name) == f"data.train: {name} {TOO_FAR}"


def test_usual_compression_is_read() -> None:
    rows = [{"prompt": f"{number} {hash(str(number))}"} for number in range(60_000)]
    Path("rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert Path("rows.jsonl.gz").stat().st_size < 2**20
    assert len(list(rows_of_file(Path("rows.jsonl.gz"), "data.train"))) == 60_000


def test_so_is_a_parquet() -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["x" * 2**20 for _ in range(64)]})
    pyarrow.parquet.write_table(table, "plain.parquet", compression="zstd", use_dictionary=False)
    assert problem("plain.parquet") == f"data.train: plain.parquet {TOO_FAR}"
    pyarrow.parquet.write_table(table, "shared.parquet", compression="zstd")  # the value is stored once
    assert problem("shared.parquet") == f"data.train: shared.parquet {TOO_FAR}"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": list(map(str, range(10_000)))}), "usual.parquet")
    assert len(list(rows_of_file(Path("usual.parquet"), "data.train"))) == 10_000


def test_a_parquet_is_measured_before_its_values_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would take gigabytes."""
    import pyarrow
    import pyarrow.parquet

    text = "x" * 2**20
    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 9000, pyarrow.int32()), [text])
    tables = {
        "rows": {"a": shared.slice(0, 250)},
        "list": {"a": pyarrow.ListArray.from_arrays([0, 9000], shared)},
        "struct": {"a": pyarrow.StructArray.from_arrays([shared.slice(0, 250)], ["b"])},
        "map": {"a": pyarrow.MapArray.from_arrays([0, 9000], pyarrow.array(list(map(str, range(9000)))), shared)},
        "numbers": {"a": pyarrow.array([0] * 2_000_000)},
    }
    made: list[int] = []
    monkeypatch.setattr(row_parquet, "_BATCH_BYTES", 2**20)
    monkeypatch.setattr(
        row_parquet, "_expanded", lambda array, of=row_parquet._expanded: made.append(of(array)) or made[-1]
    )
    before = pyarrow.total_allocated_bytes()
    for name, columns in tables.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), f"{name}.parquet", compression="zstd")
        assert problem(f"{name}.parquet") == f"data.train: {name}.parquet {TOO_FAR}"
        assert pyarrow.total_allocated_bytes() - before < 2**26
    assert max(made) > 2**33


def test_values_of_parquet_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"a": ["x", None, "y"][number % 3], "b": ["z", str(number)], "c": {"d": "e", "f": number}, "g": [("h", "i")]}
        for number in range(1000)
    ]
    kinds = {
        "a": pyarrow.string(),
        "b": pyarrow.list_(pyarrow.string()),
        "c": pyarrow.struct({"d": pyarrow.string(), "f": pyarrow.int64()}),
        "g": pyarrow.map_(pyarrow.string(), pyarrow.string()),
    }
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds))
    pyarrow.parquet.write_table(table, "usual.parquet", row_group_size=300)
    assert list(rows_of_file(Path("usual.parquet"), "data.train")) == rows
    monkeypatch.setattr(row_parquet, "_BATCH_BYTES", 2**10)
    monkeypatch.setattr(row_parquet, "_USUAL", 0)
    assert list(rows_of_file(Path("usual.parquet"), "data.train")) == rows


@pytest.mark.parametrize("row", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_rows_that_are_nested_deeply_are_one_line(row: str) -> None:
    Path("deep.jsonl").write_text(row + "\n")
    started = time.monotonic()
    assert problem("deep.jsonl").endswith("line 1 of deep.jsonl is not valid JSON (nested too deeply)")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("value", ["[" * 500 + "]" * 500, '{"a":' * 101 + "1" + "}" * 101])
def test_so_are_values_that_only_others_could_not_follow(value: str) -> None:
    Path("deep.jsonl").write_text(f'{{"prompt": "a", "x": {value}}}\n')
    rule = "must hold values nested at most 100 deep, got more in column x in deep.jsonl"
    with pytest.raises(UserError, match=f"^data.train: row 1 {rule}$"):
        read_rows("deep.jsonl", split="train", arguments={}, limit=None, field="data.train")


MAPPINGS = {
    "deep": ("x: " + "[" * 5000 + "]" * 5000, "must be nested at most 40 deep, got more"),
    "lines": (
        "\n".join(" " * depth + "a:" for depth in range(300)),
        "must be nested at most 40 deep, got more (line 42)",
    ),
    "digits": (f"x: {'9' * 5000}", "a number must have at most 40 digits, got 5000 (line 1)"),
    "hex": (f"x: 0x{'f' * 5000}", "a number must have at most 40 digits, got 5002 (line 1)"),
    "aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi")),
        "must hold at most 20000 values, aliases counted with what they stand for (line 5)",
    ),
    "itself": ("a: &a [*a]", "an alias must not stand for what it is part of (line 1)"),
}


@pytest.mark.parametrize("kind", MAPPINGS)
def test_yaml_that_stands_for_more_than_it_says_is_one_line(kind: str) -> None:
    text, rule = MAPPINGS[kind]
    started = time.monotonic()
    with pytest.raises(UserError, match="job") as caught:
        parse(text, "job.yaml")
    assert [*caught.value.problems] == [f"job.yaml: {rule}"]
    assert time.monotonic() - started < 2


def test_so_is_an_override() -> None:
    with pytest.raises(UserError, match=r"^override: must have at most 40 names before =, got a\.a\."):
        apply_overrides({}, ["a." * 5000 + "b=1"])
    with pytest.raises(UserError, match=r"^override x: must be nested at most 40 deep, got more"):
        apply_overrides({}, ["x=" + "{a: " * 100 + "1" + "}" * 100])


@pytest.mark.parametrize("kind", [name for name in MAPPINGS if name != "hex"])
def test_manifests_are_bounded_too(kind: str) -> None:
    text, rule = MAPPINGS[kind]
    Path("manifest.yaml").write_text(f"kind: RayJob\n{text}\n")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^--check: must be a YAML file") as caught:
        check_manifest_file("manifest.yaml", "2.60.0")
    [line] = caught.value.problems
    assert rule.partition(" (line")[0] in line or "nested too deeply" in line
    assert time.monotonic() - started < 5
