"""Rows and files that no run should start with: each is one line that names the row, and none takes long."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.config import UserError
from actors.models.tokenizer import tokenizer_for
from algorithms.config import DataConfig
from algorithms.data.run_data import run_data
from algorithms.offline.comparable import require_comparable
from algorithms.rewards.calls import check_signature
from launch.checks.known_rows import Rows
from launch.checks.row_checks import check_rows, check_unpaired
from launch.config import validate
from launch.verbs.preview import preview
from tests.one_set import load_rows

INIT = {"hidden_size": 64, "layers": 1, "heads": 2}
JOBS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": {"name": "grpo", "steps": 1}, "reward": {"functions": ["exact_match"]}},
    "sft": {"algorithm": {"name": "sft", "steps": 1}},
    "dpo": {"algorithm": {"name": "dpo", "steps": 1}},
    "reward": {"algorithm": {"name": "reward", "steps": 1}},
    "kto": {"algorithm": {"name": "dpo", "steps": 1, "loss": "kto"}},
}
GOOD: dict[str, dict[str, Any]] = {
    "grpo": {"prompt": "hi", "answer": "yes"},
    "sft": {"prompt": "hi", "completion": "yes"},
    "dpo": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "reward": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "kto": {"prompt": "hi", "completion": "yes", "label": True},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def config(job: str, **data: Any) -> Any:
    return validate({**JOBS[job], "model": {"init": INIT}, "data": {"train": "rows.jsonl"} | data})


def rows_file(content: str | bytes, name: str = "rows.jsonl") -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def complaint(job: str, **data: Any) -> str:
    with pytest.raises(UserError) as error:
        check_rows(config(job, **data), "data.train", tokenise=True)
    [problem] = error.value.problems
    assert "\n" not in problem
    return problem


WRONG_VALUES = [
    *[(job, {"prompt": " \n"}, "column prompt must not be empty, got blank text ' \\n'") for job in GOOD],
    *[(job, {"prompt": 3}, "column prompt must be text or messages, got a number 3") for job in GOOD],
    *[(job, {"prompt": []}, "column prompt must not be empty, got an empty list") for job in GOOD],
    ("grpo", {"answer": ""}, "column answer must not be empty, got empty text"),
    ("sft", {"completion": ""}, "column completion must not be empty, got empty text"),
    ("kto", {"completion": "\t"}, "column completion must not be empty, got blank text '\\t'"),
    ("dpo", {"chosen": ""}, "column chosen must not be empty, got empty text"),
    ("reward", {"rejected": "  "}, "column rejected must not be empty, got blank text '  '"),
    ("dpo", {"chosen": "no"}, "chosen and rejected must differ, got the same twice"),
    (
        "grpo",
        {"prompt": [{"role": "user", "content": ""}]},
        "content of message 1 of column prompt must not be empty, got empty text",
    ),
    ("grpo", {"prompt": [{"role": "user", "content": None}]}, "content of message 1 of column prompt must not be"),
    ("sft", {"completion": [{"role": "assistant", "content": " "}]}, "content of message 1 of column completion must"),
    ("kto", {"label": "yes"}, "column label must be true or false"),
]


@pytest.mark.parametrize(("job", "values", "message"), WRONG_VALUES)
def test_a_row_with_nothing_to_read_is_named(job: str, values: dict[str, Any], message: str) -> None:
    rows = [GOOD[job], GOOD[job] | ({"label": False} if job == "kto" else {}), GOOD[job] | values]
    rows_file("".join(json.dumps(row) + "\n" for row in rows))
    assert complaint(job).startswith(f"data.train: row 3: {message}")


@pytest.mark.parametrize("job", GOOD)
def test_a_column_that_is_null_is_missing(job: str) -> None:
    rows_file("".join(json.dumps(row) + "\n" for row in (GOOD[job], GOOD[job] | {"prompt": None})))
    assert complaint(job).startswith("data.train: row 2: lacks column 'prompt' of the ")


GOOD_LINE = '{"prompt": "hi", "answer": "yes"}\n'
WRONG_LINES = {
    "nan": ('{"prompt": "hi", "answer": NaN}', "line 2 of rows.jsonl is not valid JSON, which has no NaN"),
    "infinity": ('{"prompt": "hi", "answer": -Infinity}', "line 2 of rows.jsonl is not valid JSON, which has no"),
    "beyond floats": ('{"prompt": "hi", "answer": 1e999}', "line 2 of rows.jsonl must hold numbers of at most 1.8e308"),
    "6,000 digits": (
        f'{{"prompt": "hi", "answer": {"9" * 6000}}}',
        "line 2 of rows.jsonl must hold numbers of at most",
    ),
    "a name twice": ('{"prompt": "hi", "answer": "a", "prompt": "b"}', "line 2 of rows.jsonl must give each name once"),
    "no object": ("[1]", "row 2 must be an object with named columns, got a list [1] in rows.jsonl"),
    "a word": ("hello", "line 2, column 1 of rows.jsonl is not valid JSON"),
    "half a pair": ('{"prompt": "\\ud83d", "answer": "a"}', "row 2 must be text that UTF-8 can express, got half"),
    "deep": ('{"a": ' * 99_999, "line 2 of rows.jsonl is not valid JSON (nested too deeply)"),
    "20 MB": (f'{{"prompt": "{"x" * 20_000_000}"}}', "line 2 of rows.jsonl must be smaller than 4 MiB, got a larger"),
    "latin-1": ('{"prompt": "hé"}'.encode("latin-1"), "line 2 of rows.jsonl is not UTF-8 text"),
    "surrogate bytes": ('{"prompt": "\ud83d"}', "line 2 of rows.jsonl is not UTF-8 text"),
    "another column": ('{"promt": "hi", "answer": "a"}', "row 2: lacks column 'prompt' of the prompt convention"),
}


@pytest.mark.parametrize("case", WRONG_LINES)
def test_a_line_that_is_no_row_is_named(case: str) -> None:
    line, message = WRONG_LINES[case]
    rows_file(GOOD_LINE.encode() + (line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")))
    assert complaint("grpo").startswith(f"data.train: {message}")


@pytest.mark.parametrize("row", ['{"prompt": "hi"}', '{"prompt": "hi", "answer": null}'])
def test_a_row_without_a_column_that_others_have_and_a_reward_takes_is_named(row: str) -> None:
    rows_file(f"{GOOD_LINE * 10}{row}\n")
    found = check_rows(config("grpo"), "data.train", tokenise=False)
    assert (found.columns, found.lacking) == ({"prompt"}, {"answer": "data.train: row 11"})
    with pytest.raises(UserError) as caught:
        check_signature(config("grpo").reward.functions[0], found.columns, lacking=found.lacking)
    assert caught.value.problems == ("data.train: row 11 lacks the column answer, which exact_match takes",)


def test_files_are_read_by_what_they_hold() -> None:
    rows_file(b"\xef\xbb\xbf" + (GOOD_LINE * 2).replace("\n", "\r\n\r\n").encode(), "bom.jsonl")
    rows_file(gzip.compress((GOOD_LINE * 2).encode()), "zipped.jsonl")
    rows_file(GOOD_LINE * 2, "plain.jsonl.gz")
    rows_file(f"[{GOOD_LINE},{GOOD_LINE}]", "list.json")
    for name in ("bom.jsonl", "zipped.jsonl", "plain.jsonl.gz", "list.json"):
        assert check_rows(config("grpo", train=name), "data.train", tokenise=False).count == 2, name


def test_what_is_no_file_of_rows() -> None:
    os.mkfifo("pipe.jsonl")
    os.mkdir("folder")
    rows_file("", "empty.jsonl")
    rows_file("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n", "pointer.jsonl")
    rows_file("\x00\x00", "zeros.jsonl")
    expected = {
        "pipe.jsonl": "must be a file, got a pipe or device: pipe.jsonl",
        "/dev/zero": "must be a file, got a pipe or device: /dev/zero",
        "folder": "must hold files of one type (.jsonl, .json, .csv, .tsv or .parquet), got none in folder",
        "": "must not be empty, got ''",
        "a" * 4000: "File name too long",
        "s3://bucket/rows.jsonl": "must be a file here, a generator or a dataset of the hub, got address 's3://bucket",
        "empty.jsonl": "must hold at least one row, got none from empty.jsonl",
        "pointer.jsonl": "pointer.jsonl must hold the rows, is a pointer of Git LFS",
        "zeros.jsonl": "line 1, column 1 of zeros.jsonl is not valid JSON",
    }
    for source, message in expected.items():
        assert complaint("grpo", train=source).startswith(f"data.train: {message}")


def test_settings_that_a_file_does_not_read() -> None:
    rows_file(GOOD_LINE * 2)
    expected = {
        "arguments": ({"n": 1}, "data.arguments: must be left out for files, which take none, got {'n': 1}"),
        "split": ("test", "data.split: must be left out for files, which have no splits, got test"),
        "eval_split": ("dev", "data.eval_split: must be left out without data.eval, got dev"),
    }
    for name, (value, message) in expected.items():
        assert complaint("grpo", **{name: value}) == message


def test_names_in_columns_that_nothing_reads() -> None:
    rows_file(json.dumps({"prompt": "hi", "completion": "yes", "q": "a"}))
    message = complaint("sft", columns={"promt": "q"})
    assert message.startswith(
        "data.columns.promt: must be a column that is read, one of chat_template_kwargs, completion"
    )
    assert message.endswith("(did you mean prompt?), got promt for q")
    message = complaint("sft", columns={"prompt": "qq"})
    assert message.startswith("data.columns.prompt: data.train row 1 has no column 'qq' (did you mean q?)")


def judged(*rows: tuple[str, bool], file: str = "rows.jsonl") -> None:
    lines = [{"prompt": prompt, "completion": f"{n}", "label": label} for n, (prompt, label) in enumerate(rows)]
    rows_file("\n".join(map(json.dumps, lines)), file)


def incomparable(held_out: Rows | None = None, samples: int = 4, **data: Any) -> str:
    """What is wrong with the rows of a KTO run, which the run itself says in the same words."""
    job = config("kto", **data)
    job = job.model_copy(update={"algorithm": job.algorithm.model_copy(update={"samples_per_update": samples})})
    tokenizer = tokenizer_for(job.model)
    found = run_data(job.algorithm, job.data, tokenizer, max_prompt_tokens=0)
    problems = []
    for check in (
        lambda: check_unpaired(job, job.algorithm, check_rows(job, "data.train", tokenise=True), held_out),
        lambda: require_comparable(found, job.algorithm, job.data, seed=job.run.seed),
    ):
        with pytest.raises(UserError) as error:
            check()
        problems += error.value.problems
    assert problems[0] == problems[1]
    return problems[0]


def test_labels_of_one_kind_teach_kto_nothing() -> None:
    judged(("a", True), ("b", True))
    rule = "loss kto needs rows of both labels, true and false"
    assert incomparable() == f"data.train: {rule}, got true in all 2 rows"
    judged(("a", False), ("b", False), file="false.jsonl")
    two_sets = {"good": "rows.jsonl", "bad": "false.jsonl"}
    job = config("kto", train=two_sets)
    check_unpaired(job, job.algorithm, check_rows(job, "data.train", tokenise=True), None)
    assert incomparable(train=two_sets, weights={"bad": 0, "good": 1}) == f"data.train: {rule}, got true in all 2 rows"


def test_kto_compares_different_prompts_in_every_update_and_in_what_is_held_out() -> None:
    judged(("a", True), ("a", False))
    rule = "kto compares responses to different prompts, so it needs two"
    assert incomparable() == f"data.train: {rule}, got 2 rows of one"
    judged(*[(prompt, label) for prompt in "abcdef" for label in (True, False)])
    assert incomparable(eval_fraction=0.01) == f"data.eval_fraction: {rule}, got 1 row of one"
    assert incomparable(samples=2, shuffle=False) == (
        "algorithm.samples_per_update: must give every update of kto two different prompts, got 2, with which update 1 "
        "has one"
    )
    job = config("kto", eval_fraction=0.5)
    check_unpaired(job, job.algorithm, check_rows(job, "data.train", tokenise=True), None)
    judged(("a", True), ("a", False), file="eval.jsonl")
    held_out = check_rows(config("kto", train="eval.jsonl"), "data.train", tokenise=True)
    assert incomparable(held_out, eval="eval.jsonl") == f"data.eval: {rule}, got 2 rows of one"


def test_code_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_file(GOOD_LINE * 2)
    monkeypatch.setattr("algorithms.data.sources._CONVERTED_S", 0.5)
    Path("loops.py").write_text(
        "import time, sys\n"
        "def forever(row):\n    while True:\n        try:\n            pass\n        except Exception:\n"
        "            pass\n"
        "def slow(row):\n    return sum(x for x in iter(int, 1))\n"
        "def leaves(row):\n    sys.exit(0)\n"
        "def ends(row):\n    import os; os._exit(0)\n"
        "def rows(split):\n    while True:\n        time.sleep(0)\n    yield\n"
        "def number(split):\n    return 5\n"
    )
    Path("patient.py").write_text(
        "import time\nrows = iter(range(300))\n"
        "def convert(row):\n    try:\n        while True:\n            next(rows)\n            time.sleep(0.005)\n"
        "    except StopIteration:\n        return row\n"
    )
    Path("stuck.py").write_text("import time\ntime.sleep(99)\ndef convert(row):\n    return row\n")
    expected = {
        "loops.py:slow": "loops.py:slow took longer than 0.5 s (line 9 of loops.py) for row 1 of data.train",
        "loops.py:leaves": "loops.py:leaves raised SystemExit: 0 (loops.py line 11) for row 1 of data.train",
        "loops.py:ends": "loops.py:ends raised SystemExit: 0 (",
        "stuck.py:convert": "importing stuck.py took longer than 60 s: it sleeps for 99 s (line 2 of stuck.py), got",
    }
    for name, message in expected.items():
        assert complaint("grpo", converter=name).startswith(f"data.converter: {message}")
    monkeypatch.setattr("algorithms.data.sources._CONVERTED_S", 60)
    assert load_rows(DataConfig(train="rows.jsonl", converter="patient.py:convert"), "data.train"), "next() ends a loop"
    assert "loops.py:forever never ends: a loop without an end (line" in complaint("grpo", converter="loops.py:forever")
    assert "loops.py:number must give rows one after the other, got a number 5" in complaint(
        "grpo", train="loops.py:number"
    )
    assert "loops.py:rows never ends: a loop without an end (line" in complaint("grpo", train="loops.py:rows")


@pytest.mark.parametrize("data", ["data.converter=ends.py:converter", "data.train=ends.py:rows"])
def test_code_that_kills_its_process_does_not_kill_the_check(data: str) -> None:
    rows_file(GOOD_LINE * 2)
    Path("ends.py").write_text(
        "import os, signal\n"
        "def converter(row):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def rows(split):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = {"algorithm": {"name": "sft", "steps": 1}, "model": {"init": {}}, "data": {"train": "rows.jsonl"}}
    Path("job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "launch", "check", "job.yaml", data]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    line = "error: data: must be read without ending the process (is there memory for it? what does a converter or "
    assert (done.returncode, done.stderr) == (2, f"{line}generator do?), got signal 9\n")


def test_a_limit_above_the_rows_and_the_same_rows_twice_are_told() -> None:
    from launch.checks.check import examine

    rows_file(GOOD_LINE * 2)
    Path("copy.jsonl").write_text(GOOD_LINE * 2)
    values = {
        **JOBS["grpo"],
        "model": {"init": INIT},
        "data": {"train": "rows.jsonl", "eval": "copy.jsonl", "limit": 9},
    }
    values["algorithm"] = {"name": "grpo", "steps": 1, "eval_every": 1, "prompts_per_step": 2}
    found = examine(validate(values), elsewhere=True)
    assert "data.limit: 9 is above the 2 rows of data.train, and has no effect" in found.warnings
    assert any(line.startswith("data.eval: copy.jsonl holds rows that are trained on") for line in found.warnings)
    assert found.rewards == ["reward.functions.0 exact_match: 1 for the answer of row 1, 0 for 'A sample completion.'"]


def test_no_source_gives_numbers_that_are_none_or_values_that_are_no_data() -> None:
    import pyarrow
    import pyarrow.parquet

    values = {"prompt": ["hi", "ho"], "answer": [1.0, float("nan")]}
    pyarrow.parquet.write_table(pyarrow.table(values), "rows.parquet")
    rows_file(GOOD_LINE)
    rows_file(GOOD_LINE, "UPPER.JSONL")
    Path("odd.py").write_text(
        "def rows(split):\n    yield {'prompt': 'hi', 'answer': [float('inf')]}\n"
        "def thing(row):\n    return row | {'x': [object()]}\n"
        "def call(row):\n    return row | {'x': len}\n"
    )
    assert complaint("grpo", train="rows.parquet") == (
        "data.train: row 2 must hold finite numbers, got nan in column answer in rows.parquet"
    )
    assert "row 1 must hold finite numbers, got inf in column answer in" in complaint("grpo", train="odd.py:rows")
    assert complaint("grpo", converter="odd.py:thing") == (
        "data.converter: row 1 of data.train must hold data, got an object of the class object in column x "
        "from odd.py:thing"
    )
    assert "must hold data, got an object of the class builtin_function_or_method in column x" in complaint(
        "grpo", converter="odd.py:call"
    )
    assert complaint("grpo", train="UPPER.JSONL").endswith(".parquet in small letters, got UPPER.JSONL")


def test_functions_of_the_wrong_form_are_told_before_they_are_called(recwarn: pytest.WarningsRecorder) -> None:
    rows_file(GOOD_LINE)
    Path("forms.py").write_text(
        "async def later(row):\n    return row\n"
        "def many(row):\n    yield row\n"
        "def two(a, b):\n    return a\n"
        "def none():\n    return {}\n"
        "def plain():\n    yield {}\n"
        "async def slow(split):\n    yield {}\n"
        "def rows(split, n=1):\n    yield {'prompt': 'hi', 'answer': 'a'}\n"
        "def fails(row):\n    raise SystemExit\n"
        "def says(row):\n    raise ValueError('x' * 100_000)\n"
    )
    Path("folder.py").mkdir()
    converters = {
        "forms.py:later": "later must be a plain function, is async, got forms.py:later",
        "forms.py:many": "many must return a row, is a generator (it has yield), got forms.py:many",
        "forms.py:two": "two must take one argument, the row, takes (a, b), got forms.py:two",
        "forms.py:none": "none must take one argument, the row, takes (), got forms.py:none",
        "forms.py:fails": "forms.py:fails raised SystemExit (forms.py line 16) for row 1 of data.train",
        "folder.py:convert": "must be a file, folder.py is a directory, got folder.py:convert",
    }
    for name, message in converters.items():
        assert complaint("grpo", converter=name) == f"data.converter: {message}"
    assert len(complaint("grpo", converter="forms.py:says")) < 400
    assert complaint("grpo", train="forms.py:plain") == "data.train: forms.py:plain must take split, takes ()"
    assert complaint("grpo", train="forms.py:slow") == "data.train: forms.py:slow must be a plain function, is async"
    message = complaint("grpo", train="forms.py:rows", arguments={"split": "dev"})
    assert message == "data.arguments.split: must be left out, as data.split and data.eval_split give it, got dev"
    assert not recwarn.list


def test_a_generator_without_end_is_told_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.checks.row_checks.READ_ROWS", 20)
    Path("endless.py").write_text("def rows(split):\n    while True:\n        yield {'prompt': 'hi', 'answer': 'a'}\n")
    [warning] = check_rows(config("grpo", train="endless.py:rows"), "data.train", tokenise=True).warnings
    assert warning == "data.train: gave 20 rows and may give more, of which the run reads all; data.limit ends it"
    assert not check_rows(config("grpo", train="endless.py:rows", limit=30), "data.train", tokenise=True).warnings
    monkeypatch.setattr("algorithms.data.sources._ENDLESS_ROWS", 50)
    with pytest.raises(UserError, match=r"endless\.py:rows must end, gave 50 rows and more; data.limit takes"):
        load_rows(DataConfig(train="endless.py:rows"), "data.train")
    assert len(load_rows(DataConfig(train="endless.py:rows", limit=60), "data.train")) == 60


def test_text_that_the_tokenizer_cannot_express_is_told() -> None:
    rows_file(GOOD_LINE + '{"prompt": "h\\u00e9\\u00e9", "answer": "a"}\n')
    [warning] = check_rows(config("grpo"), "data.train", tokenise=True).warnings
    assert warning == "data.train: 2 unknown tokens (text that the tokenizer cannot express)"


def test_a_column_that_one_row_lacks_is_named_with_the_row() -> None:
    from launch.checks.check import examine

    rows_file(GOOD_LINE * 10 + '{"prompt": "hi", "completion": "x"}\n')
    with pytest.raises(UserError) as error:
        examine(config("grpo"), elsewhere=True)
    assert str(error.value) == "data.train: row 11 lacks the column answer, which exact_match takes"


def test_examples_of_renaming_are_of_columns_that_are_missing() -> None:
    cases = [
        ("sft", {"prompt": "a", "foo": "b"}, "{completion: foo}"),
        ("dpo", {"prompt": "a", "foo": "b"}, "{chosen: foo}"),
        ("grpo", {"Prompt": "a"}, "{prompt: Prompt}"),
        ("sft", {"prompt": "a"}, "{completion: NAME}"),
    ]
    for job, row, example in cases:
        rows_file(json.dumps(row))
        message = complaint(job)
        assert message.endswith(f"rename with data.columns, for example {example}"), message
        assert "did you mean" not in message


def test_golds_that_the_reward_math_cannot_read_are_found_with_their_row() -> None:
    rows = [{"prompt": "hi", "answer": answer} for answer in ("so\n#### 1,800", r"2\sqrt{3}", "18 or 20", "nothing")]
    rows_file("\n".join(map(json.dumps, rows)))
    settings = {**JOBS["grpo"], "model": {"init": INIT}, "data": {"train": "rows.jsonl"}}
    check_rows(validate(settings), "data.train", tokenise=False)
    with pytest.raises(UserError) as error:
        check_rows(validate(settings | {"reward": {"functions": ["math"]}}), "data.train", tokenise=False)
    assert str(error.value) == (
        "data.train: row 3: answer must be a mathematical expression for the reward math, and holds alternatives, "
        "got '18 or 20'"
    )


HUGE = "b" * 3_000_000
HUGE_ROWS: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "hi", "completion": HUGE},
    "grpo": {"prompt": HUGE, "answer": "yes"},
    "dpo": {"prompt": "hi", "chosen": HUGE, "rejected": "no"},
    "kto": {"prompt": "hi", "completion": HUGE, "label": True},
}


@pytest.mark.parametrize("job", HUGE_ROWS)
def test_a_row_of_megabytes_is_one_line_and_not_tokenised_as_a_whole(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens would take seconds and gigabytes; of a part of it enough is known."""
    from algorithms.data import pairs, rendering
    from algorithms.data import tokens as data

    tokenised: list[int] = []
    whole = rendering.encode_texts

    def encode(texts: list[str], *args: Any, **options: Any) -> Any:
        tokenised.extend(map(len, texts))
        return whole(texts, *args, **options)

    for module in (rendering, data, pairs):
        monkeypatch.setattr(module, "encode_texts", encode, raising=False)
    rows_file("".join(json.dumps(row) + "\n" for row in (GOOD[job], HUGE_ROWS[job], GOOD[job])))
    limit = "rollout.max_prompt_tokens 512" if job == "grpo" else "data.max_length 1024"
    assert complaint(job) == (
        f"data.train: 1 of 3 rows is longer than {limit} (first row 2, the longest has over 50,000 tokens); "
        f"data.overlong=drop leaves them out, data.overlong=truncate cuts them"
    )
    assert max(tokenised) <= 50_000
    if job != "kto":
        assert check_rows(config(job, overlong="drop"), "data.train", tokenise=True).count == 2


def test_a_row_of_megabytes_can_be_cut() -> None:
    """Which takes as much memory and time as its tokens need."""
    rows_file(json.dumps({"messages": [{"role": "user", "content": "b" * 2_000_000}]}) + "\n")
    found = check_rows(config("grpo", overlong="truncate"), "data.train", tokenise=True)
    assert found.count == 1
    assert [note.partition(": 1 of them")[0] for note in found.notes] == [
        "data.train: 1 of 1 rows longer than rollout.max_prompt_tokens 512"
    ]


def test_a_column_that_both_sets_lack_is_one_line() -> None:
    """And where nothing reads what it is renamed to, this is what is told."""
    from launch.checks.check import examine

    rows_file('{"prompt": "hi", "answer": "yes"}\n')
    rows_file('{"prompt": "ha", "answer": "yes"}\n', "other.jsonl")
    for columns, says in {"prompt": "train row 1 has no column 'q'", "promt": "(did you mean prompt?)"}.items():
        with pytest.raises(UserError) as caught:
            examine(config("grpo", eval="other.jsonl", columns={columns: "q"}))
        [line] = caught.value.problems
        assert line.startswith(f"data.columns.{columns}: ") and says in line


def test_what_is_no_file_of_rows_is_named() -> None:
    rows_file("<!DOCTYPE html><html></html>")
    assert complaint("sft") == "data.train: rows.jsonl must hold the rows, is a web page, not the file itself"
    assert complaint("sft", train="~/rows.jsonl").startswith(
        f"data.train: no such file (~ is not expanded in a configuration: write {Path.home()}/rows.jsonl), got ~/"
    )


EMPTY: dict[str, list[tuple[dict[str, Any], str]]] = {
    "grpo": [
        ({"answer": ""}, "column answer must not be empty, got empty text"),
        ({"prompt": [{"role": "user", "content": ""}]}, "content of message 1 of column prompt must not be empty"),
        ({"answer": " "}, "column answer must not be empty, got blank text ' '"),
    ],
    "sft": [
        ({"completion": None}, "lacks column 'completion' of the prompt-completion convention, its columns are prompt"),
        (
            {"completion": [{"role": "assistant", "content": None}]},
            "content of message 1 of column completion must not",
        ),
        ({"prompt": ""}, "column prompt must not be empty, got empty text"),
    ],
    "dpo": [
        ({"rejected": "yes"}, "chosen and rejected must differ, got the same twice"),
        ({"chosen": "é", "rejected": "è"}, "chosen and rejected must differ, both became the same tokens"),
        ({"chosen": []}, "column chosen must not be empty, got an empty list"),
    ],
    "kto": [
        ({"completion": ""}, "column completion must not be empty, got empty text"),
        (
            {"completion": [{"role": "assistant", "content": []}]},
            "content of message 1 of column completion must not be",
        ),
        ({"prompt": None}, "lacks column 'prompt' of the labelled convention, its columns are completion, label"),
    ],
}
"""Rows that say nothing, and what is told of them."""
PLACES = (11, 96, 203)


def rows_with(job: str, values: list[dict[str, Any]], count: int = 300) -> list[dict[str, Any]]:
    """Rows that tell their number, with these values at `PLACES`."""
    rows = [GOOD[job] | {"prompt": f"hi {n}"} | ({"label": n % 2 == 0} if job == "kto" else {}) for n in range(count)]
    for place, given in zip(PLACES, values, strict=False):
        rows[place] |= given
    return rows


def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    rows_file("".join(json.dumps(row) + "\n" for row in rows), name)


def run_rows(job: Any) -> Any:
    return run_data(job.algorithm, job.data, tokenizer_for(job.model), max_prompt_tokens=512)


def text_of(item: Any, job: str) -> str:
    """The prompt and the response of what a run learns from."""
    tokenizer = tokenizer_for(config(job).model)
    sequence = getattr(item, {"dpo": "chosen", "kto": "sequence"}.get(job, ""), item)
    return str(tokenizer.decode([int(token) for token in sequence.token_ids]))


@pytest.mark.parametrize("job", EMPTY)
def test_a_few_empty_rows_of_many_are_skipped_and_told(job: str) -> None:
    values, messages = zip(*EMPTY[job], strict=True)
    write(rows_with(job, list(values)))
    checked, found = check_rows(config(job), "data.train", tokenise=True), run_rows(config(job))
    [line] = found.notes
    assert line.startswith("data.train: 3 of 300 rows skipped (row 12: ")
    for number, message in zip((12, 97, 204), messages, strict=True):
        assert f"row {number}: {message}" in line
    assert checked.notes == [line]
    assert checked.count == len(found.train) == found.drawn({}) == found.sizes[""] == 297
    # The rows that are left are those of the file, under their numbers.
    kept = [n for n in range(300) if n not in PLACES]
    assert all(f"hi {n}" in text_of(item, job) for n, item in zip(kept, found.train, strict=True))
    if job == "grpo":
        assert [item.index for item in found.train] == kept
    assert found.contents["data.train"].rows == 300, "a checkpoint compares what is read"
    console = Console(file=io.StringIO(), width=400)
    preview(config(job), 12, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert line in printed and "row 11," in printed and "row 12," not in printed and "row 13," in printed


@pytest.mark.parametrize("job", EMPTY)
def test_what_is_held_out_is_drawn_from_the_rows_that_are_left(job: str) -> None:
    write(rows_with(job, [values for values, _ in EMPTY[job]]))
    algorithm = JOBS[job]["algorithm"] | {"eval_every": 1}
    values = {**JOBS[job], "algorithm": algorithm, "model": {"init": INIT}}
    run = validate({**values, "data": {"train": "rows.jsonl", "limit": 200, "eval_fraction": 0.5}})
    checked, found = check_rows(run, "data.train", tokenise=True), run_rows(run)
    assert checked.notes == found.notes and "data.train: 2 of 200 rows skipped" in found.notes[0]
    assert (checked.count, len(found.train), len(found.held_out)) == (99, 99, 99)
    assert (checked.complete, checked.whole, checked.rendered) == (True, True, True)
    console = Console(file=io.StringIO(), width=200)
    preview(run, 1, console)
    assert "99 rows are trained on, 99 are held out" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("job", EMPTY)
def test_more_empty_rows_than_are_usual_are_an_error_with_their_number(job: str) -> None:
    values, messages = zip(*EMPTY[job], strict=True)
    rows = rows_with(job, list(values), count=299)
    write(rows)
    told = complaint(job)
    first = next(n for n, part in zip((12, 97, 204), messages, strict=True) if f"row {n}: {part}" in told)
    assert told.startswith(f"data.train: row {first}: ")
    assert "; and 2 more of 299 rows are bad (data.max_bad_rows skips up to so many)" in told
    with pytest.raises(UserError) as caught:
        run_rows(config(job))
    assert str(caught.value) == told
    for allowed in (3, 0.0101):
        assert len(run_rows(config(job, max_bad_rows=allowed)).train) == 296
    assert "; and 2 more of 299 rows are bad (data.max_bad_rows 2 allows 2)" in complaint(job, max_bad_rows=2)
    assert "(data.max_bad_rows 0.01 allows 2)" in complaint(job, max_bad_rows=0.01)
    write(rows_with(job, [values[0]]))
    assert complaint(job, max_bad_rows=0) == f"{told_of(job, 12)} (data.max_bad_rows 0 allows 0)"


def told_of(job: str, number: int) -> str:
    """What a file of few rows is told of the first of the empty ones."""
    write(rows_with(job, [EMPTY[job][0][0]], count=12), "few.jsonl")
    line = complaint(job, train="few.jsonl")
    assert line.startswith(f"data.train: row {number}: {EMPTY[job][0][1]}")
    return line


USR = {"role": "usr", "content": "x"}
FORM: dict[str, tuple[dict[str, Any], str]] = {
    "grpo": ({"prompt": [USR, {"role": "user", "content": "x"}]}, "the chat template refuses it (unknown role usr)"),
    "sft": ({"completion": 3}, "column completion must be text or messages, got a number 3"),
    "dpo": ({"chosen": "yes<|end|>no"}, "a response must not go on after the end-of-sequence token <|end|>"),
    "kto": ({"label": "yes"}, "column label must be true or false (or 1 or 0), got text 'yes'"),
}
"""Rows of a wrong form: by their values, or only for the chat template."""


@pytest.mark.parametrize("job", FORM)
def test_a_row_of_a_wrong_form_is_skipped_only_where_that_is_said(job: str) -> None:
    values, message = FORM[job]
    write(rows_with(job, [EMPTY[job][0][0], values]))
    # The empty row before it is within what is usual, and is not what is wrong.
    expected = f"data.train: row 97: {message}; and 1 more of 300 rows is bad (data.max_bad_rows skips up to so many)"
    assert complaint(job) == expected
    with pytest.raises(UserError) as caught:
        run_rows(config(job))
    assert str(caught.value) == expected
    run = config(job, max_bad_rows=2)
    checked, found = check_rows(run, "data.train", tokenise=True), run_rows(run)
    assert checked.notes == found.notes and f"row 97: {message})" in found.notes[0]
    assert checked.count == len(found.train) == 298
    write(rows_with(job, [{}, values]))
    assert complaint(job) == f"data.train: row 97: {message} (data.max_bad_rows=1 skips it)"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_row_that_lacks_a_column_says_nothing(name: str) -> None:
    """As one that is null or an empty cell, which are the same; under the name that data.columns gives, too."""
    texts = [(f"hi {n}", "" if n == 96 else "yes") for n in range(100)]
    lines = [json.dumps({"prompt": prompt} | ({"answer": answer} if answer else {})) for prompt, answer in texts]
    rows_file("\n".join(lines), "rows.jsonl")
    rows_file("\n".join(["prompt,answer", *map(",".join, texts)]), "rows.csv")
    columns = {"completion": "answer"}
    message = "row 97: lacks column 'answer', which data.columns.completion names, its columns are prompt"
    assert run_rows(config("sft", train=name, columns=columns)).notes == [
        f"data.train: 1 of 100 rows skipped ({message})"
    ]
    told = complaint("sft", train=name, columns=columns, limit=99)
    assert told == f"data.train: {message}"


def test_rewards_see_the_rows_that_are_left() -> None:
    from launch.checks.check import examine

    rows = [row | {"answer": "18"} for row in rows_with("grpo", [{"prompt": 3}])]
    rows[96] |= {"answer": "18 or 20"}
    del rows[11]["answer"]
    write(rows)
    values = {**JOBS["grpo"], "model": {"init": INIT}, "data": {"train": "rows.jsonl", "max_bad_rows": 1}}
    found = check_rows(validate(values), "data.train", tokenise=True)
    assert (found.lacking, found.count) == ({}, 299)
    assert [row.number for row in found.examples] == [1, 101, 200, 300]
    with pytest.raises(UserError, match=r"^data.train: row 97: answer must be a mathematical expression"):
        examine(validate(values | {"reward": {"functions": ["math"]}}), elsewhere=True)


def test_each_set_has_its_own_allowance() -> None:
    write(rows_with("sft", [values for values, _ in EMPTY["sft"]]), "a.jsonl")
    write(rows_with("sft", [EMPTY["sft"][0][0]], count=99), "b.jsonl")
    train = {"a": "a.jsonl", "b": "b.jsonl"}
    assert complaint("sft", train=train).startswith("data.train.b: row 12: lacks column 'completion' of the ")
    run = config("sft", train=train, max_bad_rows=3, weights={"a": 1, "b": 0})
    checked, found = check_rows(run, "data.train", tokenise=True), run_rows(run)
    assert (found.sizes, found.drawn(run.data.weights), checked.count) == ({"a": 297, "b": 98}, 297, 297)
    assert [note.partition(" skipped")[0] for note in checked.notes] == [
        "data.train.a: 3 of 300 rows",
        "data.train.b: 1 of 99 rows",
    ]


def test_kto_compares_the_rows_that_are_left() -> None:
    rows = [{"prompt": f"hi {n}", "completion": "yes", "label": True} for n in range(200)]
    rows[4] |= {"label": False, "completion": ""}
    write(rows)
    assert incomparable() == (
        "data.train: loss kto needs rows of both labels, true and false, got true in all 199 rows"
    )


def test_rows_that_are_bad_and_rows_that_are_too_long_are_counted_apart() -> None:
    rows = rows_with("sft", [values for values, _ in EMPTY["sft"]])
    rows[150] |= {"completion": "b" * 2000}
    write(rows)
    run = config("sft", overlong="drop")
    checked, found = check_rows(run, "data.train", tokenise=True), run_rows(run)
    assert checked.notes == found.notes
    assert found.notes[1] == (
        "data.train: 1 of 300 rows longer than data.max_length 1024: left out (data.overlong drop)"
    )
    assert checked.count == len(found.train) == 296
    assert complaint("sft").startswith("data.train: 1 of 300 rows is longer than data.max_length 1024 (first row 151,")
    rows = [{"prompt": "hi", "completion": "b" * 2000}, {"prompt": "hi", "completion": ""}]
    write(rows)
    assert "data.overlong drop leaves no row, as 1 of 2 rows is longer" in complaint(
        "sft", overlong="drop", max_bad_rows=1
    )


def test_no_row_is_left() -> None:
    write([GOOD["sft"] | {"completion": ""}])
    assert complaint("sft", max_bad_rows=5) == (
        "data.train: row 1: column completion must not be empty, got empty text (data.max_bad_rows 5 leaves no row)"
    )


def test_ten_rows_are_named_by_what_is_wrong_with_them() -> None:
    rows = rows_with("dpo", [], count=2400)
    for place in range(1000, 2300, 100):
        rows[place]["rejected"] = "yes"
    rows[1100] |= {"chosen": ""}
    write(rows)
    assert run_rows(config("dpo")).notes == [
        "data.train: 13 of 2,400 rows skipped (rows 1,001, 1,201, 1,301, 1,401, 1,501, 1,601, 1,701, 1,801, 1,901: "
        "chosen and rejected must differ, got the same twice; row 1,101: column chosen must not be empty, got empty "
        "text; and 3 more)"
    ]


@pytest.mark.parametrize("where", ["the values", "the chat template"])
def test_counting_ends_when_it_is_clear_that_too_many_are_bad(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithms.data import bad_rows

    values, message = FORM["grpo"]
    if where == "the values":
        values, message = {"prompt": 3}, "column prompt must be text or messages, got a number 3"
    bad = {"answer": "a"} | values
    write([GOOD["grpo"]] * 10 + [bad] * 3000)
    monkeypatch.setattr(bad_rows, "_COUNTED", 20)
    monkeypatch.setattr(bad_rows, "_COUNTING_S", 60.0)
    with pytest.raises(
        UserError, match=r"^data.train: row 11: .*; and 50 more of the first 61 rows are bad \(data.max"
    ):
        run_rows(config("grpo"))
    with pytest.raises(UserError, match=r"; and 25 more of the first 36 rows are bad \(data.max_bad_rows 5 allows 5\)"):
        run_rows(config("grpo", max_bad_rows=5))
    monkeypatch.setattr(bad_rows, "_COUNTING_S", -1.0)
    # What there is after the time is up is not said: it is not known.
    assert complaint("grpo") == f"data.train: row 11: {message} (data.max_bad_rows skips up to so many)"


def test_rows_that_are_not_rendered_may_be_skipped_later() -> None:
    """So their number says nothing of those of a checkpoint."""
    write(rows_with("sft", [], count=1200))
    checked = check_rows(config("sft"), "data.train", tokenise=True)
    assert (checked.whole, checked.rendered, checked.complete) == (True, False, True)
    assert check_rows(config("sft", max_bad_rows=0), "data.train", tokenise=True).rendered
    write(rows_with("sft", []))
    assert check_rows(config("sft"), "data.train", tokenise=True).rendered
    assert not check_rows(config("sft"), "data.train", tokenise=False).rendered


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, -0.1, [3]])
def test_an_allowance_is_a_number_of_rows_or_a_share(value: Any) -> None:
    rule = f"data.max_bad_rows: must be a whole number of rows, or a share of them below 1, got {value}"
    with pytest.raises(UserError) as caught:
        config("sft", max_bad_rows=value)
    assert str(caught.value) == rule


def test_an_allowance_is_rounded_down() -> None:
    from algorithms.data.bad_rows import BadRows

    for most, total, allowed in [
        (0.29, 100, 29),
        (0.1, 9, 0),
        (None, 99, 0),
        (None, 100, 1),
        (None, 60_000, 600),
        (7, 3, 7),
    ]:
        assert BadRows(field="data.train", most=most, total=total).allowed == allowed


@pytest.mark.parametrize(
    "row",
    [
        {"messages": None},
        {"messages": ""},
        {"messages": []},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\n"}]},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"conversations": []},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": None}]},
        {"prompt": "hi", "completion": None},
        {"prompt": "hi", "completion": [{"role": "assistant"}]},
        {"prompt": "hi", "completion": [{"role": "assistant", "content": [{"type": "text", "text": " "}]}]},
        {"instruction": "hi", "output": ""},
        {"instruction": "hi", "output": None},
        {"text": None},
    ],
)
def test_empty_answers_are_alike_in_every_convention(row: dict[str, Any]) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    good = {name: {"messages": talk, "conversations": turns}.get(name, "yes") for name in row}
    write([*[good] * 99, row])
    [note] = run_rows(config("sft")).notes
    assert note.startswith("data.train: 1 of 100 rows skipped (row 100: ")
    told = " lacks column " if None in row.values() else " must not be empty, got "
    assert told in note or (row == {"messages": talk[:1]} and "has no token to train on" in note)
