"""What the page's server answers: each question of the API, on runs that are whole, damaged, empty or gone."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.page import answers as answers_module
from launch.page import open_run
from launch.page.samples import MOST_CHARACTERS, SHOWN_CHARACTERS
from launch.tracking.events import Events, Fault
from tests.page_client import append, asked, client_of, metrics, sample, write_grpo, write_now


def test_the_list_is_of_runs_with_their_last_values(tmp_path: Path) -> None:
    write_grpo(tmp_path / "a/deep", 2, run={"name": "named"})
    new = write_grpo(tmp_path / "new", 4)
    append(new / "metrics.jsonl", [metrics(5) | {"eval/reward/mean": 0.75}, metrics(6)])
    for age, path in enumerate([new, tmp_path / "a/deep"]):
        for name in ("config.json", "metrics.jsonl"):
            os.utime(path / name, times=(1_796_000_000 - 1000 * age, 1_796_000_000 - 1000 * age))
    found = asked(client_of(tmp_path), "runs")
    assert found["directory"] == tmp_path.name
    assert [entry["id"] for entry in found["runs"]] == ["new", "a/deep"], "the newest first"
    assert found["runs"][0] == {
        "id": "new", "name": "first", "job": "GRPO", "model": "models/small", "state": "unknown", "why": "",
        "phase": "", "step": 6, "steps": 9, "updated": 1_796_000_000.0,
        "values": {"eval/reward/mean": 0.75, "reward/mean": 0.6, "time/step": 2.0},
    }  # fmt: skip
    assert found["runs"][1]["name"] == "named"


def test_the_list_reads_the_end_of_long_files_and_what_has_not_changed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, client = write_grpo(tmp_path / "one"), client_of(tmp_path)
    append(run / "metrics.jsonl", (metrics(step) | {"eval/reward/mean": 0.5, "x": "y" * 900} for step in range(4, 500)))
    assert asked(client, "runs")["runs"][0]["step"] == 499
    bytes_read, real = list[int](), os.pread
    monkeypatch.setattr("launch.page.files.os.pread", lambda *given: bytes_read.append(given[1]) or real(*given))
    asked(client, "runs")
    assert bytes_read == []
    append(run / "metrics.jsonl", [metrics(500), '{"step": 501, "reward/mean": 0.'])  # half a line, torn
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 502, "rew')
    assert asked(client, "runs")["runs"][0]["step"] == 500 and sum(bytes_read) <= 2**16


def test_a_run_is_answered_in_full(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one", 4)
    append(
        run / "metrics.jsonl",
        [metrics(5) | {"time/elapsed": 42.0, "time/effective": 0.5, "time/lost": 21.0, "mismatch/kl": 0.0}],
    )
    append(run / "samples.jsonl", [sample(1, "4")])
    append(
        run / "alerts.jsonl",
        [
            {"step": 3, "rule": "kl", "text": "KL is high"},
            {"step": 3, "rule": "faults", "text": "twice"},
            "{",
            {"text": "no step"},
        ],
    )
    append(run / "logs/rollout-0.log", ["hello"])
    append(run / "logs/driver.log", ["trouble"])
    append(run / "logs/ray/raylet.out", ["ray"])
    append(run / "checkpoints/step-4/manifest.json", [{"step": 4}])
    (run / "checkpoints/step-5.partial").mkdir()
    found = asked(client_of(tmp_path), "run", id="one")
    assert {name: found[name] for name in ("step", "steps", "job", "elapsed_s", "effective", "eta_s", "can_stop")} == {
        "step": 5, "steps": 9, "job": "GRPO", "elapsed_s": 42.0, "effective": 0.5, "eta_s": 8.0, "can_stop": False,
    }  # fmt: skip
    assert found["tiles"][0] == {"metric": "reward/mean", "title": "reward", "value": 0.5, "first": 0.1, "better": "up"}
    assert found["panels"] == [{"title": "reward", "metrics": ["reward/mean"], "log": False}], "those of curves.png"
    assert found["phases"] == ["time/rollout"], "no sums and no shares of all of the run"
    assert found["logs"] == ["driver.log", "rollout-0.log", "ray/raylet.out"]
    assert found["has"] == {"samples": True, "eval_samples": False, "tokens": False}
    assert [(mark["step"], mark["kind"], mark["text"]) for mark in found["marks"]] == [
        (0, "start", "attempt 1"), (3, "alert", "KL is high"), (4, "checkpoint", "checkpoint of step 4"),
    ]  # fmt: skip


def test_a_fault_is_one_entry_from_its_first_line_to_its_last(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    events = Events(run, clock=lambda: 1_796_000_000.0)
    events.step, events.phase = 2, "update"
    number = events.noticed(Fault(who="rollout[1]", what="died", noticed_by="exit", noticed_s=0.7, cause="signal 9"))
    events.state(number, "restarting")
    client = client_of(tmp_path)
    assert [event["state"] for event in asked(client, "run", id="one")["events"]] == ["open"]
    events.recovered(number, "restarted", samples=["data row 7"])
    events.tell("joined", "rollout[2]", "10.0.0.3")
    append(
        run / "events.jsonl",
        ['{"fault": [1], "event": "noticed", "attempt": 1, "at": "x", "who": "y"}', "{", '{"fault": 9}'],
    )
    [event] = asked(client, "run", id="one")["events"]
    assert event == {
        "fault": 1, "who": "rollout[1]", "what": "died", "step": 2, "phase": "update", "at": 1_796_000_000.0,
        "attempt": 1, "noticed_by": "exit", "noticed_s": 0.7, "cause": "signal 9", "did": "restarted",
        "stood_s": 0.7, "samples": ["data row 7"], "redone_steps": 0, "state": "recovered",
    }  # fmt: skip


def test_metrics_are_those_that_are_asked_for(tmp_path: Path) -> None:
    write_grpo(tmp_path / "one", 50)
    client = client_of(tmp_path)
    found = asked(client, "metrics", id="one", names="reward/mean,nothing", after=48)
    assert found == {"step": [49, 50], "values": {"reward/mean": [4.9, 5.0]}, "mark": "0.50"}, "what is there"
    assert set(asked(client, "metrics", id="one")["values"]) == {
        "reward/mean",
        "reward/max",
        "time/rollout",
        "time/step",
    }
    assert len(asked(client, "metrics", id="one", most=10)["step"]) == 10
    found = asked(client, "metrics", id="one", names="reward/mean,reward/mean", most=10, mean=1)
    assert found["step"] == [3, 8, 13, 18, 23, 28, 33, 38, 43, 48] and list(found["values"]) == ["reward/mean"]
    assert found["values"]["reward/mean"] == pytest.approx([step / 10 for step in found["step"]])


def test_an_answer_has_no_more_values_than_a_page_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grpo(tmp_path / "one", 50)
    client = client_of(tmp_path)
    monkeypatch.setattr(answers_module, "MOST_VALUES", 100)
    names = ",".join(["reward/mean", "time/step", "reward/max", *map(str, range(3000))])
    for words in ({}, {"mean": 1}):
        line = asked(client, "metrics", 400, id="one", names=names, most=34, **words)["error"]
        assert line == "most: must be at most 33 for 3 metrics, got 34"
        found = asked(client, "metrics", id="one", names=names, most=33, **words)["values"]
        assert set(found) == {"reward/mean", "time/step", "reward/max"}


def test_groups_are_samples_of_one_prompt_side_by_side(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    rows = [
        sample(2, "4", answer="4", group=0, sample=1, row=17, length=3),
        sample(2, "5", prompt="1+1", group=1, sample=0),
    ]
    rows += [sample(2, "3", group=0, sample=0, reward=None, rewards={"right": float("nan")}, turns=2)]
    append(run / "samples.jsonl", [*map(json.dumps, rows), sample(3, "of another step")])
    append(
        run / "tokens.jsonl",
        [
            {
                "step": 2,
                "group": 0,
                "sample": 1,
                "pieces": ["4", "<|end|>"],
                "sampled": [True, False],
                "logprobs": [-0.5, None],
                "versions": [2, None],
            }
        ],
    )
    client = client_of(tmp_path)
    assert asked(client, "samples", id="one") == {"steps": [{"step": 2, "samples": 3}, {"step": 3, "samples": 1}]}
    found = asked(client, "groups", id="one", step=2)
    indexes = [[each["index"] for each in group["samples"]] for group in found["groups"]]
    assert indexes == [[0, 2], [1]] and [group["prompt"] for group in found["groups"]] == ["2+2", "1+1"]
    assert [group["row"] for group in found["groups"]] == [17, None]
    assert found["groups"][0]["samples"][0] == {
        "index": 0, "group": 0, "sample": 1, "completion": "4", "reward": 1.0, "rewards": {"right": 1.0},
        "advantage": 0.5, "length": 3,
        "status": "ok", "version": 2, "turns": None, "columns": {"answer": "4"}, "tokens": True,
    }  # fmt: skip
    third = found["groups"][0]["samples"][1]
    assert (third["reward"], third["rewards"], third["turns"], third["tokens"]) == (None, {"right": None}, 2, False)
    assert asked(client, "tokens", id="one", step=2, index=0) == {
        "pieces": ["4", "<|end|>"], "sampled": [True, False], "logprobs": [-0.5, None], "versions": [2, None],
        "entropy": None, "ratio": None, "left_out": 0,
    }  # fmt: skip
    assert asked(client, "tokens", 404, id="one", step=2, index=1)["error"].startswith(
        "index: must be a sample with tokens"
    )


def test_groups_of_rows_that_do_not_say_theirs_are_made_by_prompt(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    append(run / "samples.jsonl", [sample(1, "a", prompt="p"), sample(1, "b", prompt="q"), sample(1, "c", prompt="p")])
    found = asked(client_of(tmp_path), "groups", id="one", step=1)["groups"]
    assert [[each["completion"] for each in group["samples"]] for group in found] == [["a", "c"], ["b"]]
    assert {(each["group"], each["sample"]) for group in found for each in group["samples"]} == {(None, None)}


def test_columns_of_the_data_may_have_the_names_that_rows_of_evaluations_have(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    own = {"final_answer": "4", "solved": True}
    append(run / "samples.jsonl", [sample(1, "a", **own, columns=3), sample(1, "b", **own, columns={"answer": "5"})])
    [group] = asked(client_of(tmp_path), "groups", id="one", step=1)["groups"]
    assert [each["columns"] for each in group["samples"]] == [own | {"columns": 3}, {"answer": "5"}]


def test_long_and_hostile_completions_stay_what_they_are(tmp_path: Path) -> None:
    run, hostile = write_grpo(tmp_path / "one"), "<script>alert(1)</script>\x1b[2J\x00\u202e\ud800&amp;"
    long = "\N{GRINNING FACE}" * 2**20
    append(
        run / "samples.jsonl",
        [
            sample(1, hostile.replace("\ud800", "")),
            json.dumps(sample(1, hostile)),
            sample(1, long, prompt=hostile[:9], note=long),
        ],
    )
    client = client_of(tmp_path)
    first, second, third = (
        each for group in asked(client, "groups", id="one", step=1)["groups"] for each in group["samples"]
    )
    assert first["completion"] == hostile.replace("\ud800", "") and second["completion"] == hostile
    assert (
        third["completion"] == long[:SHOWN_CHARACTERS]
        and third["cut"]
        and len(third["columns"]["note"]) == SHOWN_CHARACTERS
    )
    assert "cut" not in first
    append(run / "samples.jsonl", [sample(2, "a", prompt="p" * SHOWN_CHARACTERS + each) for each in ("", "p")])
    groups = asked(client, "groups", id="one", step=2)["groups"]
    assert [len(group["prompt"]) for group in groups] == [SHOWN_CHARACTERS] * 2
    assert [group.get("prompt_cut", False) for group in groups] == [False, True]
    whole = asked(client, "sample", id="one", step=1, index=2)
    assert whole["completion"] == long and "cut" not in whole and whole["prompt"] == "<script>a"
    append(run / "samples.jsonl", [sample(1, "x" * (MOST_CHARACTERS + 1))])
    whole = asked(client, "sample", id="one", step=1, index=3)
    assert len(whole["completion"]) == MOST_CHARACTERS and whole["cut"]
    [hit] = asked(client, "search", id="one", text="ALERT(1)", most=1)["hits"]
    assert (hit["step"], hit["index"]) == (1, 0) and hit["completion"].startswith("<script>alert(1)")


def test_a_held_out_prompt_is_followed_over_the_steps(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    rows = [
        {"step": step, "row": row, "prompt": "same", "completion": f"{step} {row}", "reward": row / 2}
        for step in (0, 5)
        for row in (0, 1)
    ]
    append(run / "eval_samples.jsonl", [*rows, "{", {"step": 5, "row": 0, "prompt": "same", "completion": "again"}])
    client = client_of(tmp_path)
    assert asked(client, "heldout", id="one") == {
        "prompts": [{"number": 0, "prompt": "same"}, {"number": 1, "prompt": "same"}]
    }
    assert asked(client, "heldout", id="one", prompt=0)["steps"] == [
        {"step": 0, "completion": "0 0", "reward": 0.0}, {"step": 5, "completion": "5 0", "reward": 0.0},
        {"step": 5, "completion": "again", "reward": None},
    ]  # fmt: skip
    assert (
        asked(client, "heldout", 404, id="one", prompt=2)["error"]
        == "prompt: must be the number of a held-out prompt, got 2"
    )


def test_two_runs_are_compared_by_their_settings(tmp_path: Path) -> None:
    write_grpo(tmp_path / "one", algorithm={"name": "grpo", "steps": 9, "clip": [1, 2], "only": None})
    write_grpo(
        tmp_path / "two",
        algorithm={"name": "grpo", "steps": 5, "clip": [1, 2]},
        model={"path": "b", "lora": {"rank": 8}},
    )
    found = asked(client_of(tmp_path), "config", id="one", other="two")
    assert found["config"]["algorithm.clip"] == [1, 2] and found["config"]["model.lora"] is None
    assert found["differences"] == [
        {"field": "algorithm.steps", "ours": 9, "theirs": 5},
        {"field": "model.lora.rank", "ours": None, "theirs": 8},
        {"field": "model.path", "ours": "models/small", "theirs": "b"},
    ]


def test_a_log_is_read_backwards_in_whole_lines(tmp_path: Path) -> None:
    run = write_grpo(tmp_path / "one")
    text = "".join(f"line {number} {'x' * 50}\n" for number in range(4000)) + "\x1b[31mred\xff half"
    (run / "logs").mkdir()
    (run / "logs/policy-0.log").write_bytes(text.encode("latin-1"))
    client, parts, before = client_of(tmp_path), list[str](), None
    while before != 0:
        found = asked(client, "log", id="one", name="policy-0.log", **({} if before is None else {"before": before}))
        assert found["end"] - found["start"] <= 2**16 and (found["start"] == 0 or found["text"].startswith("line "))
        parts, before = [found["text"], *parts], found["start"]
    assert "".join(parts) == text.replace("\xff", "\ufffd") and len(parts) > 3
    (run / "logs/policy-0.log").write_bytes(b"y" * 200_000)
    assert asked(client, "log", id="one", name="policy-0.log")["start"] == 200_000 - 2**16, "a line without an end"


@pytest.mark.parametrize(
    "name", ["now.json", "../metrics.jsonl", "/etc/hostname", "ray", "outside.log", "", "ray/../driver.log"]
)
def test_only_logs_are_logs(tmp_path: Path, name: str) -> None:
    run = write_grpo(tmp_path / "outputs/one")
    append(run / "logs/driver.log", ["x"])
    append(tmp_path / "secret.log", ["x"])
    (run / "logs/outside.log").symlink_to(tmp_path / "secret.log")
    write_now(run)
    answer = client_of(tmp_path / "outputs").get("/api/log", params={"id": "one", "name": name})
    assert answer.status_code == (404 if name else 400) and answer.json()["error"].startswith("name: ")


@pytest.mark.parametrize(
    ("path", "words", "line"),
    [
        ("run", {}, "id: required, got nothing"),
        ("groups", {"id": "one"}, "step: required, got nothing"),
        ("groups", {"id": "one", "step": "-1"}, "step: must be a whole number from 0 to 9007199254740992, got -1"),
        ("metrics", {"id": "one", "most": "1e9"}, "most: must be a whole number from 0 to 100000, got 1e9"),
        (
            "search",
            {"id": "one", "from": "\u0663"},
            "from: must be a whole number from 0 to 9007199254740992, got \u0663",
        ),
    ],
)
def test_a_question_that_cannot_be_understood_is_one_line(
    tmp_path: Path, path: str, words: dict[str, str], line: str
) -> None:
    write_grpo(tmp_path / "one")
    assert asked(client_of(tmp_path), path, 400, **words) == {"error": line}


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("run", {}), ("metrics", {}), ("samples", {}), ("search", {"text": "a"}), ("heldout", {}), ("config", {}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "words"), QUESTIONS, ids=[path for path, _ in QUESTIONS])
def test_a_run_without_metrics_or_with_damaged_files_is_answered(
    tmp_path: Path, path: str, words: dict[str, Any]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text('{"algorithm": 3, "run": []}')
    damaged = tmp_path / "damaged"
    for name in ("metrics", "samples", "eval_samples", "tokens", "events", "alerts"):
        rubbish = [
            "{",
            "null",
            "[]",
            '{"step": 1}',
            '{"step": 2, "prompt": 7, "completion": {"a": 1}, "rewards": 5, "fault": 1}',
            "\0\0",
            "\xff",
        ]
        rubbish += [
            '{"fault": 1, "event": "noticed", "attempt": "x", "at": 5, "who": null}',
            f'{{"step": 3, "columns": {"[" * 9000}',
        ]
        append(damaged / f"{name}.jsonl", rubbish)
    (damaged / "config.json").write_text("[" * 5000)
    append(damaged / "logs/now.json", ['{"at": "tomorrow", "driver": "x"}'])
    client = client_of(tmp_path)
    for name in ("empty", "damaged"):
        asked(client, path, id=name, **words)
    assert {entry["id"] for entry in asked(client, "runs")["runs"]} == {"empty", "damaged"}


@pytest.mark.parametrize(("path", "words"), [*QUESTIONS, ("groups", {"step": 1}), ("log", {"name": "driver.log"})])
def test_a_run_that_is_deleted_while_it_is_shown_is_not_found(tmp_path: Path, path: str, words: dict[str, Any]) -> None:
    run = write_grpo(tmp_path / "one")
    append(run / "samples.jsonl", [sample(1, "a")])
    append(run / "logs/driver.log", ["x"])
    client = client_of(tmp_path)
    asked(client, path, id="one", **words)
    shutil.rmtree(run)
    assert asked(client, path, 404, id="one", **words) == {"error": "id: must be a run below the directory, got one"}
    assert asked(client, "runs")["runs"] == []
    write_grpo(run, 1)
    assert asked(client, "run", id="one")["step"] == 1, "another run of this name"


def test_no_more_runs_than_eight_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        write_grpo(tmp_path / f"{number}", number + 1)
    client, opened = client_of(tmp_path), list[str]()
    make = open_run.OpenRun
    monkeypatch.setattr(open_run, "OpenRun", lambda below, name: opened.append(name) or make(below, name))
    for number in [*range(10), 9, 5, 2, 0]:
        assert asked(client, "run", id=f"{number}")["step"] == number + 1
    assert opened == [*"0123456789", "0"], "2 to 9 are there"
