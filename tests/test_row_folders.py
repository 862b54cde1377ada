"""Folders as sources: which files are read, of which split, and one line for what cannot be meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.run_data import load_sets
from algorithms.data.sources import each_row, read_rows
from launch.checks.data_checks import is_unread
from launch.checks.findings import Findings
from launch.checks.row_checks import check_rows, same_rows
from launch.config import validate
from launch.jobs.selection import select_files
from launch.jobs.uploadable import upload_problems


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def rows_of(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answer": prompt} for prompt in prompts]


def write(file: str, *prompts: str) -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows_of(*prompts)).to_parquet(path)
    elif path.suffix == ".csv":
        path.write_text("prompt,answer\n" + "".join(f"{prompt},{prompt}\n" for prompt in prompts))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows_of(*prompts)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(*prompts)))


def read(source: str = "rows", split: str = "train", field: str = "data.train") -> list[str]:
    rows = read_rows(source, split=split, arguments={}, limit=None, field=field)
    return [str(row["prompt"]) for row in rows]


def complaint(function: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **keywords)
    [problem] = error.value.problems
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_all_files_below_it_are_one_source_in_the_order_of_their_names(ending: str) -> None:
    write(f"rows/b{ending}", "2", "3")
    write(f"rows/a/z{ending}", "1")
    write(f"rows/c{ending}", "4")
    for beside in ("README.md", "LICENSE", ".gitattributes", "dataset_infos.json", ".cache/x.jsonl", "make.py"):
        write(f"rows/{beside}", "no")
    assert read() == read("rows/") == ["1", "2", "3", "4"]


def test_a_data_set_of_the_hub_is_read_by_split() -> None:
    write("rows/data/train-00001-of-00002.parquet", "c")
    write("rows/data/train-00000-of-00002.parquet", "a", "b")
    write("rows/data/test-00000-of-00001.parquet", "d")
    write("rows/data/train_gen-00000-of-00001.parquet", "e")
    assert read() == ["a", "b", "c"]
    assert (read(split="test"), read(split="train_gen")) == (["d"], ["e"])
    message = "must have files of the split trian (did you mean train?), got those of test, train, train_gen in rows"
    assert complaint(read, split="trian") == f"data.train: {message} (data.split chooses)"
    assert complaint(read, split="trian", field="data.eval.b").endswith(" in rows (data.eval_split chooses)")
    assert complaint(read, split="trian", field="--corpus") == f"--corpus: {message}"
    Path("rows/data/train-00000-of-00002.parquet").unlink()
    assert complaint(read) == "data.train: must hold all 2 files of train, got no 00000 in rows/data"


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.jsonl", "test.jsonl"], {"train": ["train"], "test": ["test"]}),
        (["train/0.jsonl", "train/1.jsonl", "dev/0.jsonl"], {"train": ["train/0", "train/1"], "dev": ["dev/0"]}),
        (["math-train.jsonl", "code_train.jsonl", "math-test.jsonl"], {"train": ["code_train", "math-train"]}),
        (["trained.jsonl", "attest.jsonl", "training_test.jsonl"], None),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], None),
    ],
)
def test_what_names_a_split(files: list[str], splits: dict[str, list[str]] | None) -> None:
    for file in files:
        write(f"rows/{file}", file.removesuffix(".jsonl"))
    expected = splits or {"train": sorted(file.removesuffix(".jsonl") for file in files)}
    assert {split: read(split=split) for split in expected} == expected
    data = DataConfig(train="rows", split="validation")
    if splits is None:
        rule = "must be left out for folders whose files are not named by split, got validation"
        assert complaint(load_sets, data, "data.train") == f"data.split: {rule}"
    else:
        assert "must have files of the split validation" in complaint(load_sets, data, "data.train")


def test_training_and_evaluation_read_their_splits_of_one_folder() -> None:
    write("rows/train.jsonl", "a", "b")
    write("rows/validation.jsonl", "c")
    data = DataConfig(train="rows", eval="rows", eval_split="validation")
    assert load_sets(data, "data.train")[""] == rows_of("a", "b")
    assert load_sets(data, "data.eval")[""] == rows_of("c")
    write("plain.jsonl", "a")
    one = "data.eval_split: must be left out for files, which have no splits, got validation"
    data = DataConfig(train="rows", eval="plain.jsonl", eval_split="validation")
    assert complaint(load_sets, data, "data.train") == one
    elsewhere = DataConfig(train="rows", eval="/mnt/shared/rows", eval_split="validation")
    assert load_sets(elsewhere, "data.train")[""] == rows_of("a", "b"), "that may be a folder"


WRONG: dict[str, tuple[list[str], str]] = {
    "two types": (["a.jsonl", "b.parquet"], "must hold files of one type, got rows/a.jsonl and rows/b.parquet"),
    "list or lines": (["a.json", "b.jsonl"], "must hold files of one type, got rows/a.json and rows/b.jsonl"),
    "nothing": (["README.md"], "must hold files of one type (.jsonl, .json, .csv, .tsv or .parquet), got none in rows"),
    "save_to_disk": (["data-00000-of-00001.arrow", "state.json"], "must hold files of one type (.jsonl, .json, .csv"),
    "compressed otherwise": (["a.jsonl", "b.jsonl.zst"], "must hold files of one type (.jsonl, .json, .csv, .tsv or"),
    "capitals": (["a.jsonl", "B.JSONL"], "must hold files of one type (.jsonl, .json, .csv, .tsv or .parquet) and no"),
    "half named": (
        ["extra.jsonl", "test.jsonl"],
        "must hold files that are all named by split, or none, got rows/test.jsonl and rows/extra.jsonl",
    ),
    "a part": (["part-00001-of-00002.csv"], "must hold all 2 files of part, got no 00000 in rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_folder_of_rows_is_one_line(case: str) -> None:
    files, message = WRONG[case]
    for file in files:
        write(f"rows/{file}", "a")
    assert complaint(read).startswith(f"data.train: {message}")


def test_configurations_links_and_broken_files_are_one_line() -> None:
    write("rows/main/train-00000-of-00001.jsonl", "a")
    write("rows/other/train-00000-of-00001.jsonl", "b")
    assert read() == ["a", "b"] and read("rows/other") == ["b"]
    card = "---\nconfigs:\n- config_name: main\n  data_files: a\n- config_name: 'other'\n---\n# Rows\n"
    Path("rows/README.md").write_text(card)
    assert complaint(read) == (
        "data.train: must be the folder of one configuration (rows/README.md has main, other), got rows"
    )
    assert read("rows/main") == ["a"]
    Path("rows/README.md").write_text(card.replace("- config_name: 'other'\n", ""))
    Path("rows/main/more").symlink_to(Path.cwd())
    assert complaint(read) == "data.train: must hold its files itself, got a link to a folder, rows/main/more"
    Path("rows/main/more").unlink()
    with Path("rows/other/train-00000-of-00001.jsonl").open("a") as file:
        file.write("\n{")
    assert complaint(read).startswith("data.train: line 3, column 2 of rows/other/train-00000-of-00001.jsonl is not")
    Path("rows/main/train-00000-of-00001.jsonl").write_text("")
    rows = each_row("rows", split="train", arguments={}, limit=None, field="data.train")
    assert next(rows)["prompt"] == "b", "a file may be empty"
    Path("rows/main/train-00000-of-00001.jsonl").unlink()
    Path("rows/main/train-00000-of-00001.jsonl").symlink_to("nowhere.jsonl")
    assert complaint(read).startswith("data.train: no such file")


def config(**data: Any) -> Any:
    values = {
        "algorithm": {"name": "grpo", "steps": 1, "prompts_per_step": 1},
        "model": {"init": {"hidden_size": 16, "layers": 1, "heads": 2, "alphabet": "abc", "max_positions": 2000}},
        "reward": {"functions": [{"name": "exact_match"}]},
    }
    return validate(values | {"data": data})


def test_rows_are_counted_over_the_folder_and_compared_by_split() -> None:
    write("rows/a.jsonl", "a", "b")
    Path("rows/b.jsonl").write_text('{"prompt": "c", "answer": "c"}\n{"prompt": 4, "answer": "c"}\n')
    message = complaint(check_rows, config(train="rows"), "data.train", tokenise=False)
    assert message == "data.train: row 4: column prompt must be text or messages, got a number 4"
    Path("rows/b.jsonl").unlink()
    job = config(train="rows", eval="rows", limit=1)
    train, held_out = (check_rows(job, where, tokenise=False) for where in ("data.train", "data.eval"))
    assert "rows holds rows that are trained on" in same_rows(job, train, held_out)[0]
    Path("rows/a.jsonl").rename("rows/train.jsonl")
    write("rows/test.jsonl", "c")
    train, held_out = (check_rows(job, where, tokenise=False) for where in ("data.train", "data.eval"))
    assert same_rows(job, train, held_out) == []


def test_without_code_a_split_is_looked_at_by_its_name() -> None:
    write("rows/validation.jsonl", "a")
    findings = Findings(config(train="rows", split="validation", converter="mine.py:convert"), code=False)
    assert is_unread(findings, "data.train", "rows")


def test_each_file_that_is_read_must_be_in_the_upload() -> None:
    write("rows/train.jsonl", "a")
    write("rows/test.jsonl", "b")
    job = config(train="rows", eval="rows")
    assert [line for line in upload_problems(job, select_files(Path.cwd())) if line.startswith("data.")] == []
    Path(".rayignore").write_text("test.jsonl\n")
    [problem] = [line for line in upload_problems(job, select_files(Path.cwd())) if line.startswith("data.")]
    assert problem.startswith("data.eval: must be in the upload") and "rows/test.jsonl is left out" in problem
    Path(".rayignore").unlink()
    Path("rows/test.jsonl").rename("rows/test.credentials.json")
    Path("rows/train.jsonl").rename("rows/train.json")
    [problem] = [line for line in upload_problems(job, select_files(Path.cwd())) if line.startswith("data.")]
    assert problem.startswith("data.eval: must be in the upload") and "as a likely secret" in problem
