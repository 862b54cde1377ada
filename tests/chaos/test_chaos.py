"""Runs whose processes are killed and stopped at random, in every phase, go on to their end as if nothing had been.

`make chaos` has more of them, over several seeds.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import expect
from tests.chaos.injector import Injector
from tests.chaos.report import report
from tests.chaos.schedule import KINDS, PHASES, Hit, schedule
from tests.conftest import Job

Start = Callable[..., Job]
ROWS, PROMPTS, SAMPLES = 40, 8, 4
SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "").split()]
"""Of `make chaos`."""
HITS, TOGETHER = 60, 4
"""Faults of the run of every test session, and how many of them come at one time."""
ORDINARY = 159
"""Its seed."""
MANY, PAIR = 20, 2
"""The same of each of the others."""
STEPS_A_TIME = 6
METRIC, AT_LEAST = "eval/reward/right", 0.5
BESIDE = 0.45
"""The same of GRPO that generates beside training, by small steps: undisturbed it comes to 0.56."""
AS_MEANT = 0.9
"""Least share of the faults for which there is a moment."""
INJECTORS: list[Injector] = []
"""Of all runs so far."""


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """A table in the end; that of `make chaos` is kept in benchmarks/RESULTS.md."""
    yield
    faults = [fault for each in INJECTORS for fault in each.done]
    missed = sum(len(each.missed) for each in INJECTORS)
    if faults:
        print(report(faults, missed, "make chaos", len(INJECTORS), write=bool(SEEDS)))


@pytest.fixture(scope="session")
def reward_model(tandem: Start, warm_model: Path, reverse: dict[str, Any]) -> Path:
    """A reward model that has learned a little."""
    pairs = "algorithms.preference_tasks:reverse_preferences"
    data = reverse | {"train": pairs, "eval": pairs, "max_length": 32}
    settings = {
        "algorithm": {"name": "reward", "steps": 20, "samples_per_update": 64, "centering": 0.01},
        "model": {"path": str(warm_model)},
        "data": data,
        "policy": {"optimizer": {"lr": 1e-3}},
        "tracking": {"wandb": False},
    }
    job = tandem(settings)
    assert job.wait() == 0, job.text
    return job.directory / "export"


def settings(model: Path, reward_model: Path, directory: Path, times: int, **algorithm: Any) -> dict[str, Any]:
    """A run with groups of every kind, which is long enough for faults at so many times."""
    epochs = (times + 1) * STEPS_A_TIME * PROMPTS // ROWS
    reward = f"{directory / 'reward.py'}:right"
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "eval_every": 2, "epochs": epochs}
    return {
        "algorithm": {"kl_coef": 0.01} | sizes | algorithm,
        "model": {"path": str(model), "lora": {"rank": 8}},
        "data": expect.rows_of(directory, ROWS),
        "policy": {"optimizer": {"lr": 2e-3}},
        "reference": {"from_policy": False},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8, "engines": 2, "cpus_per_engine": 0.4},
        "reward": {
            "functions": [reward],
            "models": [{"path": str(reward_model), "weight": 0.1}],
        },
        "checkpoint": {"every": 2},
        "run": {"heartbeat_s": 2, "max_restarts": 9},
        "tracking": {"wandb": False, "samples_per_step": PROMPTS * SAMPLES},
    }


def check(job: Job, injector: Injector, steps: int, at_least: float) -> None:
    """All that must hold in the end."""
    try:
        assert job.wait() == 0
        expect.every_fault_is_told(job, injector)
        expect.each_step_once(job, steps)
        expect.each_prompt_once(job, ROWS, PROMPTS, SAMPLES)
        expect.learned(job, METRIC, at_least)
        expect.nothing_is_left(job)
    except AssertionError:
        print(expect.text_of(job))
        raise


def disturb(
    tandem: Start,
    config: dict[str, Any],
    directory: Path,
    seed: int,
    times: Sequence[Sequence[Hit]],
    at_least: float = AT_LEAST,
) -> None:
    """Start a run, hit it at so many times, and check what it has come to."""
    job = tandem(config, directory=directory, alone=True, forked=True)
    injector = Injector(job)
    INJECTORS.append(injector)
    try:
        job.wait_until(lambda: len(job.steps()) > 1, "first step")
        for hits in times:
            injector.inject(*hits)
        (directory / "done").touch()
    except AssertionError:
        with suppress(subprocess.TimeoutExpired):  # the run may be about to tell why
            job.process.wait(20)
        print(f"seed {seed}: {expect.text_of(job)}")
        raise
    check(job, injector, config["algorithm"]["epochs"] * ROWS // PROMPTS, at_least)
    assert len(injector.done) >= AS_MEANT * sum(map(len, times)), f"no moment for {injector.missed}"


def ppo(tandem: Start, model: Path, reward_model: Path, directory: Path, seed: int, hits: int, together: int) -> None:
    """With a critic; nothing is made ahead."""
    times = schedule(seed, hits, together=together)
    config = settings(model, reward_model, directory, len(times), name="ppo") | {"critic": {"optimizer": {"lr": 1e-3}}}
    disturb(tandem, config, directory, seed, times)


def test_a_run_survives_what_befalls_it(tandem: Start, warm_model: Path, reward_model: Path, tmp_path: Path) -> None:
    """Every kind of process, and every phase."""
    ppo(tandem, warm_model, reward_model, tmp_path, ORDINARY, HITS, TOGETHER)


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo(tandem: Start, warm_model: Path, reward_model: Path, tmp_path: Path, seed: int) -> None:
    ppo(tandem, warm_model, reward_model, tmp_path, seed, MANY, PAIR)


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo(tandem: Start, warm_model: Path, reward_model: Path, tmp_path: Path, seed: int) -> None:
    """That generates beside training, with weights that go through a holder. Responses are scored while the policy
    learns: what waits for scores is over before it can be hit."""
    kinds, phases = [*(kind for kind in KINDS if kind != "critic"), "holder"], [*PHASES]
    phases.remove("score")
    times = schedule(seed, MANY, kinds, phases, together=PAIR)
    config = settings(warm_model, reward_model, tmp_path, len(times), name="grpo", max_staleness=1)
    config |= {"model": {"path": str(warm_model)}, "policy": {"optimizer": {"lr": 2e-4, "warmup_ratio": 0.1}}}
    config["rollout"]["transfer"] = {"store": "holder"}
    disturb(tandem, config, tmp_path, seed, times, BESIDE)
