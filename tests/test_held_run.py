"""GRPO with partial rollouts on the real stack: responses are held, go on under the next weights, and train."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
ROWS, PROMPTS, SAMPLES, EPOCHS, STEP = 16, 4, 2, 2, 4


@pytest.fixture(scope="module")
def ended(tandem: Start, warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two passes over 16 rows, with responses of five tokens, of which one version samples four."""
    directory = tmp_path_factory.mktemp("held")
    words = ["".join(letters) for letters in islice(permutations("abcdefgh", 4), 0, ROWS * 30, 30)]
    rows = [{"prompt": word, "answer": word[::-1]} for word in words]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "epochs": EPOCHS}
    settings = {
        "algorithm": {"name": "grpo", "max_staleness": 1} | sizes,
        "model": {"path": str(warm_model)},
        "data": {"train": "train.jsonl"},
        "policy": {"optimizer": {"lr": 1e-3}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8, "max_step_tokens": STEP},
        "reward": {"functions": ["exact_match"]},
        "tracking": {"samples_per_step": PROMPTS * SAMPLES},
    }
    job = tandem(settings, directory=directory)
    assert job.wait() == 0, job.text
    return job


def test_responses_are_held_go_on_and_are_trained_on_once(ended: Any) -> None:
    """Each prompt once in a pass; some responses are of two versions, none is older than it may be."""
    lines = [line for step, line in sorted(ended.steps().items()) if step]
    assert len(lines) == ROWS * EPOCHS // PROMPTS
    samples = [json.loads(line) for line in (ended.directory / "samples.jsonl").read_text().splitlines()]
    assert {*Counter(sample["prompt"] for sample in samples).values()} == {EPOCHS * SAMPLES}
    assert sum(line["rollout/held"] for line in lines) > PROMPTS * SAMPLES
    assert max(line["staleness/carried_fraction"] for line in lines) > 0
    assert all(line["staleness/max"] <= 1 for line in lines)


def test_their_logprobs_are_those_of_the_weights_that_sampled_them(ended: Any) -> None:
    """Tokens of the trained version, those that came after others of an older one too, agree with the trainer."""
    lines = [line for step, line in ended.steps().items() if step]
    told = [line["mismatch/kl"] for line in lines if "mismatch/kl" in line]
    assert told and max(told) <= 1e-6
