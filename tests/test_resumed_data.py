"""A run goes on over the rows it has learned from: others are refused by the name of their set, unless accepted."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from actors.config import ModelConfig, ModelInit, UserError
from actors.files.parts import Entry
from actors.models.skeleton import write_skeleton
from actors.models.tokenizer import load_tokenizer
from algorithms.batches import Batches, WeightedBatches, row_order
from algorithms.data.row_contents import Content, Contents, content_of, contents_of
from algorithms.data.run_data import run_data
from algorithms.data.sources import read_rows
from algorithms.encoder.batches import TaskBatches
from launch.checks.check import examine
from launch.checks.resumed_data import over_new_rows
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints, Written
from launch.run.checkpointer import RunCheckpointer
from launch.run.saves import Saves, resume
from tests.test_encoder_batches import task, unlike
from tests.test_saves import Notes, StandInForABuffer

ROWS: list[dict[str, object]] = [
    {"prompt": "a", "answer": "1", "score": 1, "tool": {"name": "add", "by": None}},
    {"prompt": "ü", "answer": "2", "score": 0.5, "tool": {"name": "add", "by": 2}},
    {"prompt": "c", "answer": "3", "score": 2, "tool": None},
]
PLAIN = [{"prompt": prompt, "answer": prompt.upper()} for prompt in "abcdef"]
GO_ON = "to go on all the same: checkpoint.accept_new_data=true"
ANEW = "to start anew: checkpoint.resume=false, or another run.name than run"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(file: str, rows: Sequence[Mapping[str, object]]) -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def of_file(file: str) -> Content:
    return content_of(read_rows(file, split="train", arguments={}, limit=None, field="data.train"))


def test_rows_are_the_same_in_every_format() -> None:
    """Parquet fills absent keys with null and whole numbers with .0; JSON lists and lines, and any order of columns."""
    Path("a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    Path("a.json").write_text(json.dumps([dict(reversed(row.items())) for row in ROWS], ensure_ascii=True, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "a.parquet")
    found = of_file("a.jsonl")
    assert found.rows == 3 and found == of_file("a.json") == of_file("a.parquet")
    absent = [
        ROWS[0] | {"tool": {"name": "add"}},
        ROWS[1],
        {name: ROWS[2][name] for name in ("prompt", "answer", "score")},
    ]
    assert found == content_of(absent)  # what is null
    assert Content.kept(json.loads(json.dumps(found.entry()))) == found
    assert Content.kept(found.entry() | {"form": 0}) is None and Content.kept({"rows": 3}) is None


@pytest.mark.parametrize(
    ("row", "other", "same"),
    [
        ({"a": "x"}, {"a": "y"}, False),
        ({"a": "x"}, {"b": "x"}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": ["b", "c"]}, {"a": ["bc"]}, False),
        ({"a": [None, "b"]}, {"a": ["b"]}, False),
        ({"a": 1.5}, {"a": 1}, False),
        ({"a": ("b", 2)}, {"a": ["b", 2.0]}, True),
        ({"a": np.array([1.0, 2.5])}, {"a": [1, 2.5]}, True),
        ({"a": datetime.date(2026, 1, 2)}, {"a": datetime.date(2026, 1, 3)}, False),
        ({"a": {"b", "c"}}, {"a": {"c", "b"}}, True),
        ({"a": re.compile("a")}, {"a": re.compile("a")}, True),
        ({"a": {1: "b"}}, {"a": {1: "c"}}, False),
    ],
)
def test_what_a_row_says_decides(row: dict[str, object], other: dict[str, object], same: bool) -> None:
    assert (content_of([row]) == content_of([other])) is same


def test_the_order_of_rows_is_told_apart() -> None:
    one, other = content_of(PLAIN), content_of(PLAIN[::-1])
    assert one.sha256 != other.sha256 and one.any_order == other.any_order
    assert content_of(iter(PLAIN)) == one and content_of(PLAIN + PLAIN[:1]).rows == 7


def test_reading_all_rows_once_more_has_a_limit() -> None:
    lines("rows.jsonl", PLAIN)
    data = job().data
    assert contents_of(data, ["data.train"], 60) == {"data.train": content_of(PLAIN)}
    assert contents_of(data, ["data.train"], -1) is None


def job(checkpoint: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    evaluated = {"eval_every": 2} if "eval" in data or "eval_fraction" in data else {}
    return validate(
        {
            "algorithm": {"name": "grpo", "prompts_per_step": 2, "steps": 4} | evaluated,
            "model": {"init": {"hidden_size": 64, "heads": 2, "layers": 1}},
            "data": {"train": "rows.jsonl"} | data,
            "reward": {"functions": ["exact_match"]},
            "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 16},
            "checkpoint": checkpoint or {},
        }
    )


def saved(config: RunConfig, *, known: bool = True, rows: int = 6) -> None:
    """A checkpoint of a run of this configuration, as the run writes it."""
    Checkpoints(config).prepare(Checkpoints(config).latest())
    directory = write_skeleton(config.model, config.directory / "model")
    (config.directory / "config.json").write_text(config.model_dump_json())
    algorithm: Any = config.algorithm
    found = run_data(algorithm, config.data, load_tokenizer(directory), max_prompt_tokens=16)

    def write(directory: Path, **parts: Entry) -> Written:
        (directory / "rank0.pt").write_text("weights")
        return Written(parts, [("rank0.pt", 7, None)], found.contents if known else Contents())

    Checkpoints(config).save(1, partial(write, batches={"epoch": 0, "position": 2, "rows": rows}))


def refused(config: RunConfig) -> list[str]:
    """What `check` and `run` say before anything starts."""
    with pytest.raises(UserError) as caught:
        examine(config)
    return list(caught.value.problems)


def about_data(config: RunConfig) -> list[str]:
    return [line for line in examine(config).warnings if line.startswith("data.")]


CHECKPOINT = "outputs/run/checkpoints/step-1"


def test_other_rows_of_the_same_length_are_refused_by_name() -> None:
    lines("rows.jsonl", PLAIN)
    saved(job())
    assert about_data(job()) == []
    lines("rows.jsonl", [*PLAIN[:-1], {"prompt": "f", "answer": "G"}])
    line = f"data.train: must hold the 6 rows of the checkpoint to resume from {CHECKPOINT}, got 6 other ones"
    assert refused(job()) == [f"{line}; {GO_ON}; {ANEW}"]
    assert about_data(job({"accept_new_data": True})) == [line]
    lines("rows.jsonl", PLAIN[::-1])
    assert refused(job())[0].startswith(line.replace("6 other ones", "the same rows in another order"))
    lines("rows.jsonl", PLAIN)
    assert about_data(job()) == []


def test_the_same_rows_from_another_file_go_on_without_a_word() -> None:
    lines("rows.jsonl", PLAIN)
    saved(job())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PLAIN), "rows.parquet")
    Path("rows.jsonl").unlink()
    assert about_data(job(train="rows.parquet", limit=6)) == []


def test_what_a_limit_or_another_file_changes_is_named() -> None:
    lines("rows.jsonl", PLAIN)
    lines("others.jsonl", PLAIN[1:] + PLAIN[:1])
    saved(job(limit=4), rows=4)
    assert refused(job(limit=5)) == [
        f"data.train: must hold the 4 rows of the checkpoint to resume from {CHECKPOINT} (data.limit was 4, and is 5), "
        f"got 5; {GO_ON}; {ANEW}"
    ]
    assert refused(job(limit=4, train="others.jsonl")) == [
        f'data.train: must hold the 4 rows of the checkpoint to resume from {CHECKPOINT} (data.train was "rows.jsonl", '
        f'and is "others.jsonl"), got 4 other ones; {GO_ON}; {ANEW}'
    ]
    # The same rows, of which fewer are drawn.
    assert refused(job(limit=4, eval_fraction=0.5)) == [
        f"data.train: must hold the 4 rows of the checkpoint to resume from {CHECKPOINT} (data.eval_fraction was null, "
        f"and is 0.5), got 2; {GO_ON}; {ANEW}"
    ]


def test_another_converter_is_another_content() -> None:
    """Of the same name, too: what counts is what it makes of the rows."""
    lines("rows.jsonl", PLAIN)
    Path("own.py").write_text("def made(row):\n    return row\n")
    converted = {"converter": "own.py:made"}
    saved(job(**converted))
    assert about_data(job(**converted)) == [] == about_data(job())
    Path("own.py").write_text("def made(row):\n    return row | {'answer': row['answer'] + '!'}\n")
    assert refused(job(**converted))[0].endswith(f"{CHECKPOINT}, got 6 other ones; {GO_ON}; {ANEW}")


def test_evaluation_rows_are_compared_and_may_come_and_go() -> None:
    lines("rows.jsonl", PLAIN)
    lines("held.jsonl", PLAIN[:2])
    lines("other.jsonl", PLAIN[2:4])
    saved(job(eval="held.jsonl"))
    assert refused(job(eval="other.jsonl"))[0].startswith(
        f"data.eval: must hold the 2 rows of the checkpoint to resume from {CHECKPOINT} (data.eval was"
    )
    assert [line.partition(":")[0] for line in about_data(job())] == ["data.eval"]  # a warning, as ever
    assert about_data(job({"accept_new_data": True}, eval="other.jsonl"))[0].endswith("got 2 other ones")


def test_each_of_several_sets_is_named() -> None:
    lines("a.jsonl", PLAIN[:3])
    lines("b.jsonl", PLAIN[3:])
    both = {"train": {"one": "a.jsonl", "two": "b.jsonl"}}
    saved(job(**both))
    assert about_data(job(**both)) == []
    lines("b.jsonl", [*PLAIN[3:5], {"prompt": "x", "answer": "X"}])
    assert refused(job(**both)) == [
        f"data.train.two: must hold the 3 rows of the checkpoint to resume from {CHECKPOINT}, got 3 other ones; "
        f"{GO_ON}; {ANEW}"
    ]
    [line] = refused(job(train={"one": "a.jsonl", "three": "b.jsonl"}))
    assert line.startswith(f"data.train: must hold the sets one, two of the checkpoint to resume from {CHECKPOINT} (")
    assert f"got sets one, three; {GO_ON}" in line
    lines("rows.jsonl", PLAIN)
    assert f"got one set; {GO_ON}" in refused(job())[0]


def test_generated_rows_are_compared_too() -> None:
    Path("made.py").write_text("import json\ndef rows(split):\n    yield from json.load(open('rows.json'))\n")
    Path("rows.json").write_text(json.dumps(PLAIN))
    saved(job(train="made.py:rows"))
    assert about_data(job(train="made.py:rows")) == []
    Path("rows.json").write_text(json.dumps(PLAIN[::-1]))
    assert "the same rows in another order" in refused(job(train="made.py:rows"))[0]


def test_a_checkpoint_that_does_not_know_its_rows_is_resumed() -> None:
    """With the warning about settings that there has always been, and the number of rows compared."""
    lines("rows.jsonl", PLAIN)
    lines("others.jsonl", PLAIN[::-1])
    saved(job(), known=False)
    assert about_data(job()) == []
    assert [line.partition(",")[0] for line in about_data(job(train="others.jsonl"))] == [
        'data.train: was "rows.jsonl" when step-1 was saved'
    ]
    assert refused(job(limit=4))[0].endswith(f"got 4; {GO_ON}; {ANEW}")


def test_the_run_compares_what_check_could_not() -> None:
    """Rows that take too long to be read twice are compared once they are read; what is accepted or unknown is told."""
    lines("rows.jsonl", PLAIN)
    config = job()
    Checkpoints(config).prepare(Checkpoints(config).latest())
    kept = {"data.train": content_of(PLAIN)}
    first = Saves({}, kept)
    reporter: Any = Notes()
    resume(config, first, loop(6), reporter)
    checkpointer = RunCheckpointer(config, first, set(), reporter)
    checkpointer.save(3, last=True)
    checkpointer.keep()
    manifest = json.loads((config.directory / "checkpoints/step-3/manifest.json").read_text())
    assert manifest["rows"] == {"data.train": content_of(PLAIN).entry()}

    def resumed(given: RunConfig, rows: Contents, size: int = 6) -> tuple[list[str], Batches]:
        again, told = loop(size), Notes()
        notes: Any = told
        resume(given, Saves({}, rows), again, notes)
        return told.said, again.parts["batches"]

    said, batches = resumed(config, kept)
    assert said[-2:] == ["resuming from step 3", "loading the checkpoint"] and batches.position == 2
    others = {"data.train": content_of(PLAIN[::-1])}
    with pytest.raises(UserError, match=f"got the same rows in another order; {re.escape(GO_ON)}"):
        resumed(config, others)
    accepts = job({"accept_new_data": True})
    said, batches = resumed(accepts, others)
    assert said[0].startswith("accepted: data.train: must hold the 6 rows") and said[0].endswith("in another order")
    assert batches.position == 2
    said, batches = resumed(accepts, {"data.train": content_of(PLAIN * 2)}, 12)
    assert said[0].endswith("got 12") and batches.position == 0 and sorted(batches.next(12)) == list(range(12))
    with pytest.raises(UserError) as caught:  # rows that are left out: the sets hold the same
        resumed(config, kept, 5)
    assert caught.value.problems == (f"data.train: must hold the checkpoint's 6 rows to resume, got 5; {GO_ON}",)
    assert resumed(accepts, kept, 5)[1].position == 0
    file = config.directory / "checkpoints/step-3/manifest.json"
    file.write_text(json.dumps({name: value for name, value in manifest.items() if name != "rows"}))
    said, batches = resumed(config, others)
    assert said[0] == "step-3 does not say what rows it was trained on: they were not compared"
    assert batches.position == 2


def loop(rows: int) -> Any:
    batches = row_order({"": rows}, {}, seed=0, shuffle=True)
    batches.next(2)
    return SimpleNamespace(parts={"batches": batches, "buffer": StandInForABuffer(seed=1)})


def test_order_and_what_was_sampled_ahead_are_told_of_other_rows() -> None:
    parts: dict[str, Entry] = {"rollouts": {"taken": 7, "ready": 2}, "batches": {"rows": 6}, "kl": {"coef": 0.5}}
    told = over_new_rows(parts)
    assert told.pop("kl") == {"coef": 0.5}
    assert told == {name: parts[name] | {"new_rows": True} for name in ("rollouts", "batches")}


def test_sets_with_weights_come_and_go(tmp_path: Path) -> None:
    """Sets of as many rows go on where they were, others begin a pass; shares hold from here on."""
    first = WeightedBatches({"a": 4, "b": 6}, {"a": 1, "b": 1}, seed=3, shuffle=True)
    first.next(6)
    entry = first.save(tmp_path) | {"new_rows": True}
    second = WeightedBatches({"a": 4, "c": 5}, {"a": 1, "c": 1}, seed=3, shuffle=True)
    second.load(tmp_path, entry)
    state = second.save(tmp_path)
    assert (state["sets"]["a"]["position"], state["sets"]["c"]["position"]) == (3, 0)
    assert state["drawn"] == {"a": 0, "c": 0}
    assert {place >= 4 for place in second.next(2)} == {True, False}
    one = Batches(10, seed=3, shuffle=True)
    one.load(tmp_path, entry)
    assert (one.epoch, one.position) == (0, 0)
    second.load(tmp_path, one.save(tmp_path) | {"new_rows": True})
    assert second.save(tmp_path)["sets"]["a"]["position"] == 0


def test_tasks_of_embedding_models_come_and_go(tmp_path: Path) -> None:
    first = TaskBatches([task(unlike(9, "a"), "a"), task(unlike(5, "b"), "b")], seed=1, shuffle=True)
    for _ in range(4):
        first.next(2)
    entry = first.save(tmp_path) | {"new_rows": True}
    second = TaskBatches([task(unlike(9, "x"), "a"), task(unlike(7, "c"), "c")], seed=1, shuffle=True)
    second.load(tmp_path, entry)
    state = second.save(tmp_path)
    assert state["tasks"]["a"]["position"] == entry["tasks"]["a"]["position"] > 0
    assert state["tasks"]["c"] == {"rows": 7, "epoch": 0, "position": 0} and state["updates"] == 4
    second.next(2)


def test_another_tokenizer_or_template_is_refused(tmp_path: Path) -> None:
    """Of a model directory with the same weights; the template decides what is trained."""
    model = tmp_path / "base"
    write_skeleton(ModelConfig(init=ModelInit(hidden_size=64, heads=2, layers=1)), model)
    lines("rows.jsonl", PLAIN)

    def own(template: Path | None = None, **checkpoint: Any) -> RunConfig:
        named = {"chat_template": str(template)} if template else {}
        values = job(checkpoint).model_dump(mode="json") | {"model": {"path": str(model)} | named}
        return validate(values)

    saved(own())
    assert Checkpoints(own()).latest() is not None
    before = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(UserError) as caught:
        Checkpoints(own()).latest()
    [line] = caught.value.problems
    assert line == (
        f"model.path: must hold the tokenizer and chat template that {CHECKPOINT} was trained with "
        f"(chat_template.jinja has changed since), got {model}; {GO_ON}; {ANEW}"
    )
    assert Checkpoints(own(accept_new_data=True)).latest() is not None
    (model / "chat_template.jinja").write_text(before)
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(UserError, match=r"^model.chat_template: must hold the .*, got .*own.jinja; to go on") as caught:
        Checkpoints(own(tmp_path / "own.jinja")).latest()


def test_rows_that_only_the_run_finds_to_be_bad_are_no_other_rows() -> None:
    """What is kept is of all rows; how many are left, `check` knows where it has rendered each."""
    rows: list[dict[str, Any]] = [{"prompt": f"row {n}", "answer": "1"} for n in range(1200)]
    rows[1100]["prompt"] = [{"role": "usr", "content": "x"}, {"role": "user", "content": "y"}]
    lines("rows.jsonl", rows)
    config = job(max_bad_rows=1)
    # So long that rows need not be rendered to know that they are shorter.
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_prompt_tokens": 200})})
    saved(config, rows=1199)
    assert Checkpoints(config).latest().rows["data.train"].rows == 1200  # type: ignore[union-attr]
    assert about_data(config) == []
    few = [*rows[:200], rows[1100]]
    lines("rows.jsonl", few)
    saved(config, rows=200)
    assert about_data(config) == []
    saved(config, rows=201)
    assert refused(config)[0].startswith("data.train: must hold the 201 rows of the checkpoint to resume from")
