"""The account of a whole run, and which setting its last screen recommends: only one that helps and that is allowed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.checks import check
from launch.checks.check import takes
from launch.config import RunConfig, validate
from launch.screen.bubbles import BubbleAccount, account_line, account_of, advice
from launch.screen.display import Display
from launch.screen.summary import last_screen
from launch.sizes.machine import Machine

NOTHING = BubbleAccount(
    steps=9, waited=0, updated=0, synced=0, idle=0, underfilled=0, paused=0, tokens_lost=0, longest=1.0
)  # fmt: skip
EVEN = replace(NOTHING, waited=0.5, updated=0.4, idle=0.5)
"""On-policy: half of the time is rollout, by full engines."""


def settings(n: int = 0, **values: Any) -> dict[str, Any]:
    """Plain values; `section__field` sets another one."""
    found: dict[str, Any] = {
        "algorithm": {"max_staleness": n, "prompts_per_step": 16},
        "rollout": {
            "engines": 2, "gpus_per_engine": 1.0, "tail": "none", "update_order": "together",
            "transfer": {"lora": "adapter"},
        },
        "policy": {"ranks": 2, "gpus_per_rank": 1.0},
        "model": {"lora": None},
        "cluster": {"placement": "split"},
    }  # fmt: skip
    for name, value in values.items():
        section, _, field = name.partition("__")
        found[section][field] = value
    return found


def told(account: BubbleAccount, *refused: str, **values: Any) -> str | None:
    """The setting that is recommended where those of these names are refused."""
    found = advice(account, settings(**values), lambda setting: setting.partition("=")[0] not in refused)
    return found and found.setting


def row(step: int, **values: float | None) -> dict[str, float | None]:
    names = {"wait": "bubble/trainer_wait_seconds", "lost": "bubble/sync_tokens_lost", "all": "time/step"}
    names |= {name: f"time/{name}" for name in ("evaluate", "update", "sync")}
    names |= {name: f"rollout/response_tokens_{name}" for name in ("mean", "max")}
    names |= {name: f"bubble/engine_{name}_fraction" for name in ("idle", "underfilled", "paused")}
    return {"step": step, **{names[name]: value for name, value in values.items()}}


def test_the_account_is_of_all_steps_but_the_first_one() -> None:
    """Shares of the whole: a long step counts more. Evaluations are no part of what the trainer could have done."""
    rows = [
        row(0),
        row(1, all=1000, wait=900, idle=1, underfilled=0, paused=0, lost=5000, mean=1, max=9),
        row(2, all=10, wait=5, idle=0.5, underfilled=0.2, paused=0, lost=0, mean=10, max=20, update=4, sync=1),
        row(3, all=31, evaluate=1, wait=5, idle=0.1, underfilled=0, paused=0.2, lost=70, mean=10, max=40, update=8),
        row(4, all=50, wait=50, idle=None),  # nobody answered
    ]
    found = account_of(rows, 0)
    assert found and found.steps == 2
    assert [found.waited, found.updated, found.synced] == [10 / 40, 12 / 40, 1 / 40]
    expected = [(5 + 3.1) / 41, 2 / 41, 6.2 / 41]
    assert [found.idle, found.underfilled, found.paused] == pytest.approx(expected)
    assert (found.tokens_lost, found.longest) == (70, 3.0)
    assert found.filled == pytest.approx(1 - 2 / (41 - 8.1 - 6.2))
    # After a resume, the first one is that of this start.
    later = account_of(rows, 1)
    assert later and later.steps == 1 and later.idle == pytest.approx(0.1)
    assert account_of(rows, 2) is None and account_of([], 0) is None


def test_on_policy_the_larger_side_decides() -> None:
    """Both alike: one beside the other. Rollouts are nearly all of it: more engines, where these are full."""
    assert told(EVEN) == "algorithm.max_staleness=1"
    slow = replace(EVEN, waited=0.8, idle=0.2, updated=0.1)
    assert told(slow) == "rollout.engines=4"
    assert told(slow, rollout__engines=1) == "rollout.engines=2"
    # Where so many do not fit: one more than there are, while that helps more than the next best.
    found = advice(slow, settings(), lambda setting: setting != "rollout.engines=4")
    assert found and (found.setting, round(found.gain, 3)) == ("rollout.engines=3", 0.267)
    assert told(slow, "rollout.engines") == "algorithm.max_staleness=1"
    assert told(replace(slow, waited=0.95), "rollout.engines") is None
    # Groups take turns on the same GPUs whatever is allowed.
    assert told(EVEN, "rollout.engines", cluster__placement="shared") is None


def test_more_processes_on_the_same_cores_are_no_help() -> None:
    """They share them; on nodes of their own they do not."""
    slow, idle = replace(EVEN, waited=0.8, idle=0.2, updated=0.1), replace(NOTHING, idle=0.5, updated=0.8)
    assert told(slow, rollout__gpus_per_engine=0) is None
    assert told(EVEN, rollout__gpus_per_engine=0) is None, "what both compute with is not there twice"
    thin = replace(EVEN, underfilled=0.4)
    assert told(thin, rollout__gpus_per_engine=0) == "algorithm.max_staleness=1"
    assert told(slow, rollout__gpus_per_engine=0, rollout__engines_per_node=1) == "rollout.engines=4"
    assert told(idle, n=1, policy__gpus_per_rank=0) == "rollout.engines=1"
    assert told(idle, n=1, policy__gpus_per_rank=0, policy__ranks_per_node=2) == "policy.ranks=4"


def test_long_tails_are_told_by_the_longest_response() -> None:
    """Not by empty slots alone, of which a small step leaves many."""
    empty = replace(EVEN, waited=0.85, idle=0.15, updated=0.1, underfilled=0.7)
    assert told(replace(empty, longest=4.0)) == "rollout.tail=postpone"
    assert told(replace(empty, longest=4.0), "rollout.tail") == "algorithm.max_staleness=1"
    assert told(replace(empty, longest=4.0), rollout__tail="postpone") == "algorithm.max_staleness=1"
    assert told(replace(empty, longest=1.5)) == "algorithm.max_staleness=1"
    assert told(replace(EVEN, longest=4.0)) == "algorithm.max_staleness=1"
    # It saves half of the time in which slots are empty, at most.
    found = advice(replace(empty, longest=4.0), settings(), lambda _: True)
    assert found and found.gain == 0.35


def test_ahead_a_trainer_that_waits_wants_engines_or_more_for_them_to_do() -> None:
    waits = replace(NOTHING, waited=0.4, updated=0.5)
    assert told(waits, n=1) == "rollout.engines=4"
    thin = replace(waits, underfilled=0.9)
    assert told(thin, n=1) == "algorithm.max_staleness=2"
    assert told(thin, n=4) is None, "further than that, learning suffers"


def test_ahead_engines_that_wait_want_a_faster_trainer_or_are_too_many() -> None:
    idle = replace(NOTHING, idle=0.5, updated=0.8)
    assert told(idle, n=1) == "policy.ranks=4"
    assert told(idle, "policy.ranks", n=1) == "rollout.engines=1"
    assert told(idle, "policy.ranks", n=1, rollout__engines=1) is None
    assert told(replace(idle, idle=0.2), "policy.ranks", n=1, rollout__engines=4) is None, "four are needed"
    assert told(replace(idle, updated=0.1, synced=0.6), n=1) == "algorithm.prompts_per_step=32"
    # On-policy they wait by design, and ahead those of a trainer that waits, too, wait for something else.
    assert told(idle, n=0) is None
    assert told(replace(idle, waited=0.1, idle=0.3, updated=0.3), "rollout.engines", n=4) is None


def test_what_a_sync_costs_is_saved_by_the_order_of_the_engines_or_by_what_is_sent() -> None:
    stops = replace(NOTHING, paused=0.3, tokens_lost=1e6)
    assert told(stops, n=1) == "rollout.update_order=rolling"
    assert told(stops, n=1, rollout__engines=1) is None, "one alone has none that would go on"
    assert told(stops, n=1, rollout__update_order="rolling") is None
    merged = {"model__lora": {"rank": 8}, "rollout__transfer": {"lora": "merged"}}
    assert told(stops, n=1, **merged) == "rollout.transfer.lora=adapter"
    assert told(stops, "rollout.transfer.lora", n=1, **merged) == "rollout.update_order=rolling"
    assert told(stops, n=1, rollout__transfer={"lora": "merged"}) == "rollout.update_order=rolling", "there is no LoRA"


def test_what_saves_less_than_a_tenth_is_not_told() -> None:
    assert told(NOTHING) is None and told(NOTHING, n=1) is None
    assert told(replace(EVEN, waited=0.09)) is None
    assert told(replace(EVEN, waited=0.11)) == "algorithm.max_staleness=1"
    assert told(replace(EVEN, waited=math.nan)) is None


shares = st.floats(0, 1)
counts = st.integers(1, 9)


@given(st.tuples(*[shares] * 6), st.floats(1, 9), st.integers(0, 9), counts, counts, st.sets(st.integers(0, 20)))
def test_only_what_is_taken_and_not_set_already_is_told(
    numbers: tuple[float, ...], longest: float, n: int, engines: int, ranks: int, refused: set[int]
) -> None:
    """Whatever the account is; what is refused is asked once, and the best of the others remains."""
    waited, updated, synced, idle, underfilled, paused = numbers
    account = replace(
        NOTHING, waited=waited, updated=updated, synced=synced, idle=idle, underfilled=underfilled, paused=paused,
        longest=longest,
    )  # fmt: skip
    asked: list[str] = []

    def taken(setting: str) -> bool:
        asked.append(setting)
        return len(asked) not in refused

    values = settings(n=n, rollout__engines=engines, policy__ranks=ranks)
    found = advice(account, values, taken)
    assert len(set(asked)) == len(asked)
    if found is None:
        assert all(number + 1 in refused for number in range(len(asked)))
        return
    assert found.setting == asked[-1] and len(asked) not in refused
    assert 0.1 <= found.gain <= 1
    section, field = found.setting.partition("=")[0].split(".")
    assert str(values[section][field]) != found.setting.partition("=")[2]


def rl(**sections: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "grpo", "steps": 9, "prompts_per_step": 2, "samples_per_prompt": 2},
            "model": {"init": {}},
            "data": {"train": "algorithms.tasks:reverse"},
            "reward": {"functions": ["exact_match"]},
        }
        | sections
    )


def machine(gpus: int = 0, memory: int = 2**36) -> Any:
    return lambda **_: Machine(cpus=2, gpus=gpus, memory=memory, free=memory, shared=memory)


def test_a_setting_is_taken_where_check_would_take_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By rules of settings, and by what this machine has."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(check, "this_machine", machine())
    config = rl(run={"output": str(tmp_path)})
    assert takes(config, "rollout.engines=2")
    assert not takes(config, "rollout.engines=200"), "more than the cores"
    assert not takes(config, "policy.ranks=5"), "more than the samples of an update"
    assert not takes(config, "algorithm.max_staleness=-1") and not takes(config, "rollout.no_such_setting=1")
    monkeypatch.setattr(check, "this_machine", machine(memory=2**30))
    assert not takes(config, "rollout.engines=2"), "each has a cache of a GiB"
    assert not takes(config, "algorithm.prompts_per_step=4"), "not even this one fits there"


def test_the_last_screen_tells_the_account_and_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Engines with GPUs of their own.
    groups: dict[str, Any] = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_engine": 1}}
    config = rl(run={"output": str(tmp_path), "name": "first"}, **groups)
    config.directory.mkdir()
    shares = {"idle": 0.15, "underfilled": 0.0, "paused": 0.05}
    rows = [row(step, all=10, wait=8, lost=600, update=1, **shares) for step in (1, 2, 3)]
    (config.directory / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    display = Display()
    display.start("GRPO", 9, 0)
    display.close()

    def shown() -> list[str]:
        lines = last_screen(config, display, "done", finished=True, curves=None)
        return [line for line in lines if line.startswith(("bubbles:", "try:"))]

    monkeypatch.setattr(check, "this_machine", machine(gpus=4))
    account = (
        "bubbles: the trainer waited for responses 80% of the time; engines: 15% idle, 0% less than half full, "
        "5% stopped for weights (1,200 tokens not generated)"
    )
    why = "# the trainer waits for engines that are full; saves at most 40% of the time, by estimate"
    assert shown() == [account, f"try:     rollout.engines=2 {why}"]
    monkeypatch.setattr(check, "this_machine", machine(gpus=2))
    assert "rollout.engines" not in "".join(shown()), "what does not fit is not told"
    (config.directory / "metrics.jsonl").write_text(json.dumps(rows[0]))
    assert shown() == [], "a first step tells nothing"


def test_lost_tokens_are_told_where_there_are_any() -> None:
    assert "tokens" not in " ".join(account_line(EVEN))
