"""Whatever is done to a run's files, each question about it has an answer, or one line that says why there is none."""

import random
import re
from pathlib import Path

import pytest

from launch.page.answers import Answers
from launch.page.live import RunNews
from launch.tracking.events import Events, Fault
from tests.page_client import append, asked, client_of, metrics, sample, write_grpo, write_now

ROUNDS = 8
VALUES = (
    *(
        b"null",
        b"[]",
        b"{}",
        b"1e999",
        b"NaN",
        b'"\\ud800"',
        b"-1",
        b"true",
        b"12345678901234567890123",
        b'{"a": [1]}',
        b'""',
    ),
    b"[" * 2000,
)
FILES = (
    *("config.json", "logs/now.json", "metrics.jsonl", "samples.jsonl", "eval_samples.jsonl", "tokens.jsonl"),
    *("events.jsonl", "alerts.jsonl"),
)
QUESTIONS = (
    *("run?", "metrics?most=7&", "samples?", "groups?step=1&", "sample?step=1&index=0&", "tokens?step=1&index=0&"),
    *("search?text=a&", "heldout?", "heldout?prompt=0&", "config?other=one&", "log?name=driver.log&"),
)


def whole_run(directory: Path) -> Path:
    """A run with something in each of its files."""
    run = write_grpo(directory, 12)
    write_now(run)
    append(
        run / "samples.jsonl",
        (sample(step, "a b", group=0, sample=each, answer=[1]) for step in (1, 2) for each in (0, 1)),
    )
    append(run / "eval_samples.jsonl", (sample(step, "a", row=0) for step in (0, 5)))
    tokens = {"pieces": ["a"], "sampled": [True], "logprobs": [-1.0], "versions": [1]}
    append(run / "tokens.jsonl", ({"step": step, "group": 0, "sample": 0} | tokens for step in (1, 2)))
    append(run / "alerts.jsonl", [{"step": 3, "rule": "kl", "text": "high"}])
    append(run / "logs/driver.log", ["trouble"])
    events = Events(run)
    for who in ("rollout[0]", "policy[0]"):
        events.recovered(events.noticed(Fault(who=who, what="died", noticed_by="exit")), "restarted", samples=["row 1"])
    return run


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, removed or put in, or a value of JSON put in another one's place."""
    found = bytearray(content)
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(found) or 1)
        way = chance.randrange(5)
        if way == 0:
            found[place : place + 1] = chance.randbytes(1)
        elif way == 1:
            del found[place : place + chance.randrange(40)]
        elif way == 2:
            found[place:place] = chance.randbytes(8)
        elif values := list(re.finditer(rb': ("[^"]*"|-?[0-9.e-]+|null|true)', bytes(found))):
            value = chance.choice(values)
            found[value.start(1) : value.end(1)] = chance.choice(VALUES)
    return bytes(found)


@pytest.mark.parametrize("seed", range(2))
def test_no_damage_is_a_fault_of_the_servers(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    run, client = whole_run(tmp_path / "one"), client_of(tmp_path)
    for question in QUESTIONS:
        asked(client, f"{question}id=one")
    for _ in range(ROUNDS):
        for name in FILES:
            (run / name).write_bytes(damaged((run / name).read_bytes(), chance))
        append(run / "metrics.jsonl", [metrics(chance.randrange(40))])
        assert [entry["id"] for entry in asked(client, "runs")["runs"]] == ["one"]
        for question in QUESTIONS:
            status = client.get(f"/api/{question}id=one").status_code
            asked(client, f"{question}id=one", status)
            assert status in (200, 404)
        RunNews(Answers(tmp_path), "one", "0.1").look()
