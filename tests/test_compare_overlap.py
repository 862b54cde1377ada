"""Ways of the benchmark of overlap: what they set, what they are compared with, and that a pinned run is pinned."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from actors.rollout.worker import RolloutWorker
from actors.train.policy import PolicyWorker
from benchmarks import load
from benchmarks.compare_overlap import Measured, Way, figures, references, report, ways_of
from benchmarks.compare_trl import BenchmarkError
from benchmarks.pinned import SIDES, Pinned


@pytest.mark.parametrize(
    "name, settings",
    [
        ("n=0", []),
        ("before", []),
        ("n=2", ["algorithm.max_staleness=2"]),
        ("tail", ["rollout.tail=postpone"]),
        ("early", ["algorithm.overlap_gradients=true"]),
        ("tail+early", ["rollout.tail=postpone", "algorithm.overlap_gradients=true"]),
        ("n=1/1", ["rollout.threads_per_engine=1", "policy.threads_per_rank=1", "algorithm.max_staleness=1"]),
        ("n=1/2+1", ["rollout.threads_per_engine=2", "policy.threads_per_rank=1", "algorithm.max_staleness=1"]),
        ("n=0/pin", ["rollout.threads_per_engine=1", "policy.threads_per_rank=1"]),
    ],
)
def test_a_way_is_its_settings(name: str, settings: list[str]) -> None:
    assert list(Way.of(name).settings) == settings


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n",
        "n=",
        "n=-1",
        "n=01",
        "late",
        "n=1/",
        "n=1/0",
        "n=1/1+",
        "n=1/+1",
        "n=1/pin+1",
        "trl/1",
        "trl/pin",
        "early+tail",
    ],
)
def test_what_is_no_way_is_refused(name: str) -> None:
    with pytest.raises(BenchmarkError, match=r"--ways: must be before, tail, early, tail\+early or n=NUMBER.*, got "):
        Way.of(name)


def test_a_way_that_comes_twice_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="--ways: each once, got n=1 twice"):
        ways_of(["n=1", "n=0", "n=1"])


def test_one_core_is_too_few_for_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(BenchmarkError, match="/pin: needs 2 cores, one for each side, and there is 1"):
        ways_of(["n=0/pin"])
    ways_of(["n=0/1"])


@pytest.mark.parametrize(
    "names, found",
    [
        (["n=0", "n=1"], {"n=0": [], "n=1": ["n=0"]}),
        (
            ["n=1/pin", "n=0", "n=0/pin"],
            {"n=1/pin": ["n=0", "n=0/pin"], "n=0": [], "n=0/pin": ["n=0"]},
        ),
        (["n=0/1", "n=1/pin", "n=0/pin"], {"n=0/1": [], "n=1/pin": ["n=0/pin"], "n=0/pin": []}),
        (
            ["before", "trl", "n=0", "n=1"],
            {"before": ["trl"], "trl": [], "n=0": ["trl", "before"], "n=1": ["trl", "before", "n=0"]},
        ),
        (["tail", "n=2"], {"tail": [], "n=2": ["tail"]}),
    ],
)
def test_what_each_way_is_compared_with(names: list[str], found: dict[str, list[str]]) -> None:
    ways = [Way.of(name) for name in names]
    assert {way.name: references(way, ways) for way in ways} == found


def line(tokens: int, **more: Any) -> dict[str, Any]:
    return {"tokens/generated": tokens, "staleness/mean": 1.0, **more}


def test_first_and_last_steps_are_in_no_figure() -> None:
    ends = [5.0, 9.0, 10.0, 12.0, 14.0, 19.0, 30.0, 31.0, 32.0]
    kept = [line(64 * 100, **{"bubble/trainer_wait_seconds": wait}) for wait in (1.0, 2.0, 6.0)]
    other = line(64 * 900, **{"bubble/trainer_wait_seconds": 99.0, "left_out": {"failed": ["a", "b"]}})
    lines = [other] * 3 + kept + [other] * 3
    found = figures(Way.of("n=1"), "long", list(zip(ends, lines, strict=True)), 0.0)
    assert found.step_seconds == 3.0  # of (19 - 10) / 3
    assert found.samples_per_second == pytest.approx(64 / 3)
    assert found.response_tokens == 100
    assert found.accounts == {"trainer_wait_seconds": 3.0}
    assert found.left_out == 12


def test_of_trl_only_the_first_step_is_left_out() -> None:
    lines = [{"tokens/generated": 640}] * 3
    found = figures(Way.of("trl"), "long", list(zip([10.0, 12.0, 15.0], lines, strict=True)), 0.0, warm=1, margin=0)
    assert (found.step_seconds, found.staleness, found.accounts) == (2.5, 0.0, {})


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="--steps: must be above 6 for n=0, got 6"):
        figures(Way.of("n=0"), "long", [(float(n), line(1)) for n in range(6)], 0.0)


def took(name: str, seconds: float, tokens: float = 100.0, broken: tuple[str, ...] = ()) -> Measured:
    return Measured(
        name=name,
        step_seconds=seconds,
        samples_per_second=64 / seconds,
        response_tokens=tokens,
        staleness=0.0,
        accounts={},
        left_out=0,
        foreign_cores=0.0,
        broken=list(broken),
    )


def test_a_report_compares_each_round_with_its_own_reference() -> None:
    ways = [Way.of(name) for name in ("n=0", "n=0/pin", "n=1/pin")]
    seconds = [{"n=0": 4.0, "n=0/pin": 6.0, "n=1/pin": 3.0}, {"n=0": 8.0, "n=0/pin": 9.0, "n=1/pin": 5.0}]
    text = report("long", "told", [{key: took(key, value) for key, value in each.items()} for each in seconds], ways)
    assert "- **n=1/pin: 1.467x the speed of n=0** (by round: 1.333, 1.600)" in text
    assert "- **n=1/pin: 1.900x the speed of n=0/pin** (by round: 2.000, 1.800)" in text
    assert "- **n=0/pin: 0.778x the speed of n=0** (by round: 0.667, 0.889)" in text
    assert "NOT" not in text
    assert text.count("| 2 | n=1/pin | 5.00 |") == 1


def test_a_report_says_what_makes_it_doubtful() -> None:
    ways = [Way.of(name) for name in ("n=0", "n=1/pin")]
    broken = {"n=0": took("n=0", 4.0), "n=1/pin": took("n=1/pin", 3.0, 120.0, ("NOT PINNED: why.",))}
    text = report("long", "told", [broken], ways)
    assert "n=1/pin: NOT PINNED: why." in text
    assert "NOT COMPARABLE: mean response lengths differ, 100.0 against 120.0 tokens." in text


def test_sides_are_told_by_the_classes_that_compute_them() -> None:
    assert list(SIDES) == [f"ray::{each.__name__}" for each in (RolloutWorker, PolicyWorker)]


WORKER = """
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
sys.stdin.readline()  # a thread that comes later
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("started", flush=True)
sys.stdin.readline()
child.kill()
"""


class Worker:
    """A process with the title of a side's, a thread and a child; it can start another thread."""

    def __init__(self, title: str) -> None:
        self.process = subprocess.Popen(
            [title, "-c", WORKER], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pids = [self.process.pid, int(self.tell())]

    def tell(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def cores(self) -> list[set[int]]:
        return [os.sched_getaffinity(int(thread)) for pid in self.pids for thread in os.listdir(f"/proc/{pid}/task")]


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started = [Worker("ray::RolloutWorker.poll"), Worker("ray::PolicyWorker"), Worker("ray::RewardWorker")]
    yield started
    for worker in started:
        worker.go_on()
        worker.go_on()
        worker.process.wait(20)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_engines_and_trainer_are_kept_on_a_core_each(workers: list[Worker]) -> None:
    engine, trainer, reward = workers
    everywhere = os.sched_getaffinity(0)
    first, second = sorted(everywhere)[:2]
    kept = Pinned()
    kept.look(os.getpid())
    engine.go_on()
    assert engine.tell() == "started\n"
    assert engine.cores() == [{first}] * 4  # its own three threads, one of which came later, and its child's
    assert trainer.cores() == [{second}] * 3
    assert reward.cores() == [everywhere] * 3
    kept.look(os.getpid())
    assert kept.broken() == []
    os.sched_setaffinity(trainer.pids[1], everywhere)
    kept.look(os.getpid())
    assert trainer.cores() == [{second}] * 3
    assert kept.broken() == ["NOT PINNED: 1 threads of the trainer left their core."]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_side_that_was_never_seen_is_told() -> None:
    kept = Pinned()
    kept.look(os.getpid())
    assert kept.broken() == [
        "NOT PINNED: no process of the engines was found.",
        "NOT PINNED: no process of the trainer was found.",
    ]


def test_a_family_is_what_descends_from_a_process(workers: list[Worker]) -> None:
    found = load.family(workers[0].process.pid)
    assert found == {pid: found[pid] for pid in workers[0].pids}
    assert found[workers[0].pids[1]][:3] == [workers[0].pids[1], workers[0].pids[0], os.getpid()]
