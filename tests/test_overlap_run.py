"""GRPO that generates beside training, on the real stack: no prompt is lost or trained on twice, whatever ends the run.

One job, ended in every way while responses are made ahead, and gone on with; read by all tests.
"""

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.files.parts import read_arrays

Start = Callable[..., Any]
ROWS, PROMPTS, SAMPLES, EPOCHS, MOST = 40, 8, 4, 10, 2
ENDS = ("killed", "SIGTERM", "reward", "fails", "finished")
STEPS = ROWS * EPOCHS // PROMPTS
REWARD = """
from pathlib import Path

HERE = Path({directory!r})

def score(completions, prompts, answer):
    if (HERE / "broken").exists():
        raise OSError("the judge is gone")
    with (HERE / "scored").open("a") as file:
        file.write("x" * len(completions))
    return [float(text == right) for text, right in zip(completions, answer)]
"""


class History:
    """Starts of one run, one after the other; a start ends as its name says."""

    def __init__(self, tandem: Start, directory: Path, settings: dict[str, Any]) -> None:
        self.tandem = tandem
        self.directory = directory
        self.settings = settings
        self.ends: dict[str, SimpleNamespace] = {}
        self.job: Any = None
        self.began = 0.0

    def start(self, *overrides: str, fault: str = "") -> None:
        self.began = time.monotonic()
        (self.directory / "scored").write_text("")
        self.before = self.last_step()
        self.job = self.tandem(
            self.settings, *overrides, directory=self.directory, alone=True, forked=True, fault=fault
        )

    def last_step(self) -> int:
        file = self.directory / "run/checkpoints/latest"
        return int(file.read_text().removeprefix("step-")) if file.exists() else 0

    def wait_until_ahead(self) -> None:
        """Until this start has scored more than the step that it is making needs, and a checkpoint is whole. A first
        step is over by then, after which SIGTERM lets steps finish."""

        def ahead() -> bool:
            steps = max(self.job.steps(), default=0) - self.before
            scored = (self.directory / "scored").stat().st_size
            return steps >= 2 and self.last_step() > 0 and scored > (steps + 1) * PROMPTS * SAMPLES

        self.job.wait_until(ahead, "group that is made ahead")

    def end(self, name: str, code: int | None) -> None:
        """Wait for the end; `code` None: it was killed."""
        found = self.job.process.wait(60) if code is None else self.job.wait()
        assert code in (None, found), f"{name}: {self.job.text}"
        left, latest = self.job.left_behind(), self.last_step()
        file = self.directory / f"run/checkpoints/step-{latest}/rollouts/ahead.safetensors"
        arrays = read_arrays(file) if file.exists() else {"rows": [], "partial_rows": []}  # as at the end of a run
        steps = max(self.job.steps())
        print(f"{name}: {time.monotonic() - self.began:.1f} s, steps {self.before} to {steps}")
        ahead = len(arrays["rows"]) + len(arrays["partial_rows"])
        self.ends[name] = SimpleNamespace(text=self.job.text, left=left, steps=steps, saved=latest, ahead=ahead)


def rows_of(directory: Path, rows: int) -> None:
    """Words to reverse, so many to train on and 8 held out."""
    words = ["".join(letters) for letters in islice(permutations("abcdefgh", 4), 0, (rows + 8) * 30, 30)]
    for name, own in (("train", words[:rows]), ("held-out", words[rows:])):
        found = [{"prompt": word, "answer": word[::-1]} for word in own]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (directory / "my_reward.py").write_text(REWARD.format(directory=str(directory)))


def settings_for(model: Path, **algorithm: Any) -> dict[str, Any]:
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "eval_every": 8}
    return {
        "algorithm": {"name": "grpo"} | sizes | algorithm,
        "model": {"path": str(model)},
        "data": {"train": "train.jsonl", "eval": "held-out.jsonl"},
        # Little: where all groups have learned the task, nothing is published any more, and steps are no versions.
        "policy": {"optimizer": {"lr": 3e-4}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "reward": {"functions": ["my_reward.py:score"]},
        "checkpoint": {"every": 2},
        "tracking": {"samples_per_step": PROMPTS * SAMPLES},
    }


@pytest.fixture(scope="module")
def history(tandem: Start, warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> History:
    """Ten passes over 40 rows with max_staleness 2, evaluations in between, ended four times and gone on with."""
    directory = tmp_path_factory.mktemp("overlap")
    rows_of(directory, ROWS)
    history = History(tandem, directory, settings_for(warm_model, max_staleness=MOST, epochs=EPOCHS))
    history.start()
    history.wait_until_ahead()
    os.killpg(history.job.process.pid, signal.SIGKILL)
    history.end("killed", None)
    history.start()
    history.wait_until_ahead()
    history.job.process.send_signal(signal.SIGTERM)
    history.end("SIGTERM", 130)
    history.start()
    history.wait_until_ahead()
    (directory / "broken").touch()
    history.end("reward", 1)
    (directory / "broken").unlink()
    history.start("run.max_restarts=0", fault=f"fails:{directory / 'fails'}")
    history.end("fails", 1)
    history.start()
    history.end("finished", 0)
    return history


@pytest.fixture(scope="module")
def ended(history: History) -> Any:
    """The last start."""
    return history.job


@pytest.mark.parametrize("name", ENDS)
def test_no_process_is_left_and_the_next_start_goes_on(history: History, name: str) -> None:
    """Each start but the first says from where."""
    end, starts = history.ends[name], list(history.ends)
    assert end.left == []
    assert "Traceback" not in end.text
    if name != "killed":
        before = history.ends[starts[starts.index(name) - 1]]
        assert f"resuming from step {before.saved}\n" in end.text
        assert end.steps > before.saved


def test_told_to_stop_a_run_saves_what_it_has_ahead(history: History) -> None:
    end = history.ends["SIGTERM"]
    assert end.saved == end.steps, "SIGTERM lets the step finish, and keeps it"
    assert f"stopped by SIGTERM after step {end.steps} of {STEPS}" in end.text
    assert end.text.count("stopped; a checkpoint is in ") == 1
    assert end.ahead > 0


def failure(end: SimpleNamespace) -> str:
    """The line that says why a start has failed."""
    [line] = re.findall(r"^run failed: (.*)$", end.text, re.MULTILINE)
    assert end.text.count("full log: ") == 1
    return line


def test_a_reward_that_begins_to_raise_ends_a_run(history: History) -> None:
    line = failure(history.ends["reward"])
    assert re.search(r"\d+ samples could not be scored in a step of \d+ \(reward.max_failed_fraction 0.1 allows", line)
    assert "my_reward.py:score: OSError: the judge is gone" in line


def test_a_transfer_that_fails_ends_a_run(history: History) -> None:
    """While responses that are made ahead wait on the engine for their new weights."""
    assert int((history.directory / "fails").read_text()) > 0, "samples were running"
    assert "RuntimeError: lost while receiving" in failure(history.ends["fails"])


def rows(job: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.directory / "samples.jsonl").read_text().splitlines()]


def test_every_prompt_is_trained_on_once_in_a_pass_or_named(ended: Any) -> None:
    """All responses of every step are in samples.jsonl, and no step is there twice."""
    samples, steps = rows(ended), ended.steps()
    assert sorted(steps) == list(range(STEPS + 1)), "each step once, in order, none missing"
    assert len(samples) == STEPS * PROMPTS * SAMPLES
    trained = Counter(sample["prompt"] for sample in samples)
    named = Counter(row for line in steps.values() for names in line.get("left_out", {}).values() for row in names)
    assert len(trained) + len(named) >= ROWS
    if not named:  # as it is where responses are as long as each other
        assert set(trained.values()) == {EPOCHS * SAMPLES}


def test_no_response_is_older_than_allowed_and_some_are_old(ended: Any) -> None:
    """The policy that step s trains has version s - 1, and so has the oldest that may have sampled for it, less two."""
    ages = [sample["step"] - 1 - sample["version"] for sample in rows(ended)]
    assert min(ages) >= 0 and 0 < max(ages) <= MOST
    for step, line in ended.steps().items():
        if step:
            assert 0 <= line["staleness/mean"] <= line["staleness/max"] <= MOST


def test_what_is_of_the_trained_version_agrees_and_the_rest_is_weighted(ended: Any) -> None:
    lines = [line for step, line in ended.steps().items() if step]
    assert any("mismatch/kl" in line for line in lines), "the first step is of its own version"
    assert all(line.get("mismatch/kl", 0.0) <= 1e-6 for line in lines)
    assert all(line["weights/canary_difference"] < 1e-4 for line in lines)
    stale = [line for line in lines if line["staleness/max"]]
    # An update without a difference of rewards changes nothing, and what is late by that one alone is not.
    others = [line["policy/sampler_kl"] > 1e-6 for line in stale if "policy/sampler_kl" in line]
    assert sum(others) > len(others) / 2
    assert all(line["policy/importance_weight_p99"] >= line["policy/importance_weight_p50"] > 0 for line in stale)


def test_it_generates_beside_training(ended: Any) -> None:
    """While the policy learns, the engines are not idle: most steps find their responses ready."""
    lines = [line for step, line in ended.steps().items() if step > 3]
    waits = [line["time/rollout"] for line in lines]
    assert sorted(waits)[len(waits) // 2] < 0.5 * sorted(line["time/step"] for line in lines)[len(lines) // 2]
