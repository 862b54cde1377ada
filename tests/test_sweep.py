"""A sweep's loop: what is tried, stopped, told, gone on with; trials are programs that write metrics as a run does."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.cli import main
from launch.sweep.prepare import Options, Plan, make_directory, prepare
from launch.sweep.process import run_command, start
from launch.sweep.record import SweepTrial, read_record
from launch.sweep.sweep import Sweep
from tests.conftest import ROOT
from tests.test_sweep_space import GRPO

METRIC, SEED = "eval/reward/mean", "run.seed"
PROGRAM = textwrap.dedent("""
    import json, os, signal, sys, time
    given = dict(word.split("=", 1) for word in sys.argv[2:])
    directory = os.path.join(json.loads(given["run.output"]), given["run.name"])
    os.makedirs(directory, exist_ok=True)
    rows, seed = os.path.join(directory, "metrics.jsonl"), int(given["run.seed"])
    print("start", flush=True)
    if seed >= 90:
        print("error: data.train: must be there, got %d" % (seed // 10), flush=True)
        sys.exit(2)
    done = len(open(rows).readlines()) if os.path.exists(rows) else 0
    if seed in (60, 61):
        with open(rows, "a") as file:
            file.writelines('{"step": %d, "eval/reward/mean": 9}\\n' % step for step in range(62 - seed))
        if seed == 60:
            sys.exit(1)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    steps = int(given["algorithm.steps"])
    for step in range(done + 1, steps + 1):
        value = None if seed == 50 else seed * step / 100
        with open(rows, "a") as file:
            file.write(json.dumps({"step": step, "eval/reward/mean": value}) + "\\n")
        if os.path.exists("hold") or (seed in (10, 50) and step == 2):
            for _ in range(6000):
                if asked:
                    break
                time.sleep(0.01)
        if asked and step < steps:
            open(os.path.join(directory, "saved"), "w").write(str(step))
            sys.exit(130)
        time.sleep(0.03 if seed < 30 else 0)
""")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("words.yaml").write_text(GRPO)
    Path("program.py").write_text(PROGRAM)
    return "words.yaml"


def program(config: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-S", "-E", "program.py", str(config), *overrides]


def planned(config: str, *overrides: str, **options: Any) -> Plan:
    """A sweep of trials of 8 steps."""
    plan = prepare(Options(config, [*overrides, "algorithm.steps=8"], METRIC, **options))
    make_directory(plan, config)
    return plan


def swept(plan: Plan, *, during: Callable[[Sweep], None] = lambda _: None) -> dict[str, tuple[str, float | None]]:
    """Run it; returns the state and value of each trial, by its seed."""
    sweep = Sweep(plan, program)
    during(sweep)
    try:
        sweep.run()
    finally:
        sweep.close()
    assert read_record(plan.directory) == plan.record
    return {trial.point[SEED]: (trial.state, trial.value) for trial in plan.record.trials}


def test_trials_run_stop_and_fail_each_for_itself(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second falls behind, the third's data is not there, the fourth's metric is no number."""
    plan = planned(config, f"{SEED}=40,10,91,50,41", grace=2)
    assert swept(plan) == {
        "40": ("finished", 3.2),
        "10": ("stopped", 0.2),
        "91": ("failed", None),
        "50": ("stopped", None),
        "41": ("finished", 3.28),
    }
    assert [trial.point[SEED] for trial in plan.record.ordered()] == ["41", "40", "10", "91", "50"]
    assert plan.record.trials[2].cause == "error: data.train: must be there, got 9"
    assert plan.record.trials[1].cause == "at step 2 not among the best 1/3"
    stopped = plan.directory / "trial-2"
    assert (stopped / "saved").read_text() == "2", "it ends with a checkpoint"
    told = capsys.readouterr().err.splitlines()
    early = "5 trials, 1 at a time, stopped early from step 2 on"
    assert told[0] == f"outputs/words-sweep: {early}; best is the highest {METRIC}"
    assert "trial 4: step 2, eval/reward/mean is no number" in told
    assert "trial 3: failed (error: data.train: must be there, got 9)" in told
    assert f"full log: {plan.directory}/logs/trial-3.txt" in told


def test_a_trial_counts_as_the_model_that_it_exports(config: str) -> None:
    """The best one where that is kept by the sweep's metric, else the last."""
    plan = planned(config, f"{SEED}=40,41", f"algorithm.best_by={METRIC}", mode="min", early_stop="none")
    assert swept(plan) == {"40": ("finished", 0.4), "41": ("finished", 0.41)}
    assert [trial.step for trial in plan.record.trials] == [1, 1]


def test_neither_the_untrained_model_nor_a_trial_that_fails_has_a_value(config: str) -> None:
    """Although they come to more than any other."""
    plan = planned(config, f"{SEED}=40,60,61", f"algorithm.best_by={METRIC}", early_stop="none")
    learnt = dict[int, float | None]()

    def learn(sweep: Sweep) -> None:
        sweep._search.tell = lambda number, point, value: learnt.update({number: value})  # type: ignore[method-assign]

    assert swept(plan, during=learn) == {"40": ("finished", 3.2), "60": ("failed", None), "61": ("finished", 4.88)}
    assert learnt == {1: 3.2, 2: None, 3: 4.88}
    assert plan.record.trials[1].reached == 1
    assert [trial.point[SEED] for trial in plan.record.ordered()] == ["61", "40", "60"]


def test_what_has_ended_is_not_run_again(config: str) -> None:
    values = f"{SEED}=40,10,91,41"
    swept(planned(config, values, grace=2))
    logs = Path("outputs/words-sweep/logs")
    assert swept(planned(config, values, grace=2))["41"] == ("finished", 3.28)
    starts = {path.stem: path.read_text().count("start") for path in logs.glob("*.txt")}
    # One that has failed is tried again: its cause may be gone.
    assert starts == {"trial-1": 1, "trial-2": 1, "trial-3": 2, "trial-4": 1}


def test_the_first_trials_with_one_mistake_end_the_sweep(config: str) -> None:
    with pytest.raises(UserError) as caught:
        swept(planned(config, f"{SEED}=91,92,93,94"))
    assert caught.value.problems == ("data.train: must be there, got 9 (the first 2 trials ended so)",)


def test_several_run_at_a_time(config: str) -> None:
    most = 0

    def count(sweep: Sweep) -> None:
        look = sweep._look_at

        def looked(item: Any) -> None:
            nonlocal most
            most = max(most, len(sweep._running))
            look(item)

        sweep._look_at = looked  # type: ignore[method-assign]

    found = swept(planned(config, f"{SEED}=20,21,22,23", parallel=2, early_stop="none"), during=count)
    assert most == 2
    assert {state for state, _ in found.values()} == {"finished"}


SWEEPS = textwrap.dedent("""
    import sys
    sys.argv[0] = "sweep"
    from launch.sweep import process, sweep
    from tests.test_sweep import program
    sweep.Sweep.__init__.__defaults__ = (program, *sweep.Sweep.__init__.__defaults__[1:])
    from launch.cli import main
    sys.exit(main(sys.argv[1:]))
""")
COMMAND = ["sweep", "words.yaml", "run.seed=20,21", "algorithm.steps=8", "--metric", METRIC, "--early-stop", "none"]


def begin() -> subprocess.Popen[str]:
    """The sweep of the command line, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SWEEPS, *COMMAND], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(number: int) -> int:
    path = Path(f"outputs/words-sweep/trial-{number}/metrics.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_sweep_that_is_killed_and_interrupted_goes_on(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hold").touch()
    killed = begin()
    wait_for(lambda: rows(1) == 1)
    killed.kill()
    killed.wait()
    saved = Path("outputs/words-sweep/trial-1/saved")
    wait_for(saved.exists)  # the trial ends with a checkpoint, although nobody is there to ask for it
    interrupted = begin()
    wait_for(lambda: rows(1) == 2)
    assert main(["sweep", *COMMAND[1:]]) == 2
    assert "must be that of a sweep that nobody runs" in capsys.readouterr().err
    assert main(["sweep", "--table", "outputs/words-sweep"]) == 0
    assert "running, step" in capsys.readouterr().out
    interrupted.send_signal(signal.SIGINT)
    text, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert "trial 1: finishing its step and saving a checkpoint" in text
    assert "interrupted; continue with the same command, results so far are in outputs/words-sweep" in text
    assert saved.read_text() == "2"
    Path("hold").unlink()
    ended = begin()
    text, _ = ended.communicate(timeout=60)
    assert ended.returncode == 0
    assert "trial 1 of 2, from step 2: run.seed=20" in text
    assert "trial 1: step 2," not in text, "what was told is not told again"
    assert [rows(1), rows(2)] == [8, 8], "steps that are done are not done again"
    assert "best: outputs/words-sweep/trial-2, eval/reward/mean 1.68, with run.seed=21" in text
    assert main(["sweep", "--table", "outputs/words-sweep"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines()[2:4]] == [["2", "21"], ["1", "20"]]


def test_a_process_of_before_is_waited_for(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs in one directory would write over each other's checkpoints."""
    plan = planned(config, f"{SEED}=40,41")
    plan.directory.joinpath("logs").mkdir()
    before = start(["sleep", "1"], plan.directory, "trial-1")
    assert before is not None
    assert start(["true"], plan.directory, "trial-1") is None
    assert swept(plan)["40"] == ("finished", 3.2)
    assert "trial 1: waiting for the end of a process of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"overrides": ["run.seed=1,2"]}, "values: must be run.seed=40,41, as in this sweep before, got run.seed=1,2"),
        ({"metric": "eval/reward/std", "mode": "min"}, "--metric: must be eval/reward/mean, as in this sweep before"),
        ({"seed": 1}, "--seed: must be 0, as in this sweep before, got 1"),
    ],
)
def test_another_sweep_takes_another_directory(config: str, changed: dict[str, Any], line: str) -> None:
    options = Options(config, ["run.seed=40,41"], METRIC)
    plan = prepare(options)
    make_directory(plan, config)
    plan.record.write(plan.directory)
    with pytest.raises(UserError) as caught:
        prepare(replace(options, **changed))
    assert caught.value.problems[0].startswith(line)
    Path(config).write_text(GRPO.replace("steps: 100", "steps: 50"))
    with pytest.raises(UserError, match=r"algorithm.steps: must be 100, as in this sweep before .*, got 50; another"):
        prepare(options)


@pytest.mark.parametrize(
    ("number", "point"),
    [(1, {"run.seed": "42"}), (1, {"reward.functions": "[x.py:f]"}), (2, {"run.seed": "40"}), (1, ["run.seed"])],
)
def test_a_file_of_somebody_else_says_nothing_that_the_command_does_not(config: str, number: int, point: Any) -> None:
    options = Options(config, ["run.seed=40,41"], METRIC)
    plan = prepare(options)
    make_directory(plan, config)
    plan.record.trials = [SweepTrial(number, point, [])]
    plan.record.write(plan.directory)
    with pytest.raises(UserError, match=r"sweep.json: must "):
        prepare(options)


def test_a_sweep_of_drawn_values_may_get_more_trials(config: str) -> None:
    options = Options(config, ["run.seed=randint(30,40)"], METRIC, trials=2, early_stop="none")
    plan = prepare(replace(options, overrides=[*options.overrides, "algorithm.steps=8"]))
    make_directory(plan, config)
    first = swept(plan)
    more = prepare(replace(options, overrides=[*options.overrides, "algorithm.steps=8"], trials=4))
    second = swept(more)
    assert {seed: second[seed] for seed in first} == first
    assert len(more.record.trials) == 4
    with pytest.raises(UserError, match="--trials: must be at least 4, as there are so many, got 3"):
        prepare(replace(options, overrides=[*options.overrides, "algorithm.steps=8"], trials=3))


def test_optuna_learns_of_trials_of_earlier_starts(config: str) -> None:
    pytest.importorskip("optuna", reason="the extra `sweep`")
    options = Options(config, ["run.seed=randint(30,90)", "algorithm.steps=8"], METRIC, trials=3, search="optuna")
    for trials in (3, 6):
        plan = prepare(replace(options, trials=trials, early_stop="none"))
        make_directory(plan, config)
        swept(plan)
    seeds = [int(trial.point[SEED]) for trial in plan.record.trials]
    assert seeds[3:] != seeds[:3], "the second start does not draw what the first has drawn"
    assert all(30 <= seed < 90 for seed in seeds)


def test_optuna_that_is_not_installed_is_one_line(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError) as caught:
        prepare(Options(config, ["run.seed=randint(1,9)"], METRIC, trials=3, search="optuna"))
    assert caught.value.problems == (
        "--search: needs the package optuna (pip install 'tandem-rlhf[sweep]') for optuna, got it without",
    )


def test_a_trial_is_run_by_this_very_tandem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, nothing of the working directory is imported by mistake."""
    monkeypatch.chdir(ROOT)
    assert run_command(Path("c.yaml"), ["a=1"]) == [sys.executable, "-m", "launch", "run", "c.yaml", "a=1"]
    monkeypatch.chdir(tmp_path)
    assert "-P" in run_command(Path("c.yaml"), [])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["c.yaml", "a=1,2"], "--metric: required without --table, got nothing (see tandem sweep --help)"),
        (["--metric", "x"], "CONFIG: required without --table, got nothing (see tandem sweep --help)"),
        (["c.yaml", "--table", "x"], "--table: must stand alone, without CONFIG and options, got c.yaml"),
        (
            ["c.yaml", "--metric", "x", "--reduction", "1"],
            "--reduction: must be a whole number from 2, got 1 (see tandem",
        ),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_job_is_a_run_and_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "sweep", "c.yaml", "a=1,2"]) == 2
    line = "error: CONFIG: must be that of a run, as `tandem sweep` itself starts those of a sweep, got sweep\n"
    assert capsys.readouterr().err == line
