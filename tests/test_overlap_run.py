"""GRPO that generates beside training, on the real stack: no prompt is lost or trained on twice, even when killed.

One job, killed in the middle and gone on with, read by all tests.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
ROWS, PROMPTS, SAMPLES, EPOCHS, MOST = 40, 8, 4, 2, 2
STEPS = ROWS * EPOCHS // PROMPTS


@pytest.fixture(scope="module")
def ended(tandem: Start, warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two passes over 40 rows with max_staleness 2, evaluations in between; killed after the fourth step, and resumed
    from the third."""
    directory = tmp_path_factory.mktemp("overlap")
    words = ["".join(letters) for letters in islice(permutations("abcdefgh", 4), 0, (ROWS + 8) * 30, 30)]
    for name, own in (("train", words[:ROWS]), ("held-out", words[ROWS:])):
        rows = [{"prompt": word, "answer": word[::-1]} for word in own]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "epochs": EPOCHS, "eval_every": 4}
    settings = {
        "algorithm": {"name": "grpo", "max_staleness": MOST} | sizes,
        "model": {"path": str(warm_model)},
        "data": {"train": "train.jsonl", "eval": "held-out.jsonl"},
        "policy": {"optimizer": {"lr": 1e-3}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "reward": {"functions": ["exact_match"]},
        "checkpoint": {"every": 3},
        "tracking": {"samples_per_step": PROMPTS * SAMPLES},
    }
    first = tandem(settings, directory=directory, alone=True)
    first.wait_until(lambda: 4 in first.steps(), "fourth step")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait(30)
    assert first.left_behind() == [], "Ray's processes end with the driver that started them"
    job = tandem(settings, directory=directory, alone=True)
    assert job.wait() == 0, job.text
    assert "resuming from step 3" in job.text
    return job


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
    assert min(ages) >= 0 and max(ages) == MOST
    for step, line in ended.steps().items():
        if step:
            assert 0 <= line["staleness/mean"] <= line["staleness/max"] <= MOST


def test_what_is_of_the_trained_version_agrees_and_the_rest_is_weighted(ended: Any) -> None:
    lines = [line for step, line in ended.steps().items() if step]
    assert any("mismatch/kl" in line for line in lines), "the first step is of its own version"
    assert all(line.get("mismatch/kl", 0.0) <= 1e-6 for line in lines)
    assert all(line["weights/canary_difference"] < 1e-4 for line in lines)
    stale = [line for line in lines if line["staleness/max"]]
    assert stale and all(line["policy/sampler_kl"] > 1e-6 for line in stale if "policy/sampler_kl" in line)
    assert all(line["policy/importance_weight_p99"] >= line["policy/importance_weight_p50"] > 0 for line in stale)


def test_it_generates_beside_training_and_leaves_nothing_behind(ended: Any) -> None:
    """While the policy learns, the engines are not idle: most steps find their responses ready."""
    lines = [line for step, line in ended.steps().items() if step > 3]
    waits = [line["time/rollout"] for line in lines]
    assert sorted(waits)[len(waits) // 2] < 0.5 * sorted(line["time/step"] for line in lines)[len(lines) // 2]
    assert ended.left_behind() == []
