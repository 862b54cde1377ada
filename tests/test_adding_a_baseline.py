"""The worked example of docs/algorithms.md, taken literally: a baseline and a surrogate, each a function and an entry.

Nothing else of the copy changes, and still settings are checked, help tells of them, loss and advantages are theirs.
"""

from pathlib import Path

import pytest

from tests.worked_example import Example, run

EXAMPLE = Example.of("docs/algorithms.md", "### Adding a baseline or a surrogate")
SETTINGS = ("algorithm.advantage=median", "algorithm.loss=spo")

MATHS = """
import math
from typing import Any

import numpy as np
import torch

from actors.episodes import Experience
from actors.train.worker import Totals, pack_experiences
from algorithms.config_rl import GRPOConfig
from algorithms.rl.estimators import Estimator
from algorithms.rl.policy_loss import policy_loss

config = GRPOConfig(name="grpo", advantage="median", loss="spo", clip_high=0.5, samples_per_prompt=4)
rng = np.random.default_rng(0)
mask = np.array([False, True, True])
fields = [{"rollout_logprobs": rng.normal(-1, 0.3, 3).astype(np.float32)} for _ in range(4)]
items = [Experience(token_ids=np.arange(3), action_mask=mask, fields=each) for each in fields]
group = list(zip([3.0, -1.0, 0.5, 10.0], items))
[found], _ = Estimator(config=config, kl_coef=0.0, counted=[[True] * 4])([group], lambda values: values)
advantages = [each["advantages"] for each in found]
np.testing.assert_allclose(advantages, [[0, gap, gap] for gap in (1.25, -2.75, -1.25, 8.25)], rtol=1e-6)

def loss_of(clip_high: float) -> tuple[float, float]:
    rows = [
        Experience(
            token_ids=np.arange(3),
            action_mask=mask,
            fields=each | {"advantages": above, "versions": np.zeros(3, np.float32)},
        )
        for each, above in zip(fields, advantages)
    ]
    batch = pack_experiences(rows, torch.device("cpu"), share_prompts=False)
    policy = torch.full((12,), -1.0, dtype=torch.float64, requires_grad=True)
    options: Any = {"config": config.model_copy(update={"clip_high": clip_high}), "kl_coef": 0.0}
    totals = Totals(tokens=8, sequences=4, trained_tokens=8)
    loss, _ = policy_loss(batch, policy, torch.zeros(12), totals, constant=3, version=0, **options)
    expected = 0.0
    for each, above in zip(fields, advantages):
        for t in (1, 2):
            rho, a = math.exp(-1 - each["rollout_logprobs"][t]), above[t]
            expected += (abs(a) * (rho - 1) ** 2 / (2 * clip_high) - rho * a) / 8
    return loss.item(), expected

for clip_high in (0.5, 0.2):
    got, expected = loss_of(clip_high)
    assert abs(got - expected) < 1e-6 * abs(expected), (got, expected)
print("as defined")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the example added to it."""
    return EXAMPLE.add_to_copy(tmp_path_factory.mktemp("copy"), "configs", "examples")


def test_the_example_is_two_functions_and_two_entries() -> None:
    assert [(kind, name) for kind, name, _ in EXAMPLE.whole] == [
        ("append", "algorithms/rl/advantages.py"),
        ("append", "algorithms/rl/losses.py"),
    ]
    [diff] = EXAMPLE.diffs
    changed = [line for line in diff.splitlines() if line[0] in "+-" and not line.startswith("---")]
    assert [line[:6] for line in changed] == ['+    "'] * 2


def test_it_follows_the_style(copy: Path, environment: dict[str, str]) -> None:
    run(copy, environment, "-m", "ruff", "check", *EXAMPLE.files)
    run(copy, environment, "-m", "ruff", "format", "--check", *EXAMPLE.files)


def test_loss_and_advantages_are_those_of_the_new_entries(copy: Path, environment: dict[str, str]) -> None:
    assert run(copy, environment, "-c", MATHS) == "as defined\n"


def test_settings_know_the_new_entries(copy: Path, environment: dict[str, str]) -> None:
    """What they do not read is refused, as is a group of one sample; help says what reads a setting."""
    check = ("-m", "launch", "check", "configs/own-task.yaml", *SETTINGS)
    run(copy, environment, *check, "algorithm.clip_high=0.3", "algorithm.samples_per_update=8")
    wrong = {
        "algorithm.clip_low=0.1": "clip_low must be left out with loss spo, which does not read it, got 0.1",
        "algorithm.normalize_std=false": "normalize_std must be left out with advantage median, which does not read it",
        "algorithm.samples_per_prompt=1": "samples_per_prompt must be at least 2 for grpo with advantage median",
        "algorithm={name: grpo, loss: spo, importance_correction: {}, clip_high: 0.3}": "ratio is 1, got 0.3",
    }
    for setting, line in wrong.items():
        assert line in run(copy, environment, *check, setting, fails=2), setting
    told = run(copy, environment, "-m", "launch", "help", "algorithm.clip_high")
    assert "grpo (with loss clip or gspo or spo)" in told
    assert "one of group, leave_one_out, median, " in run(
        copy, environment, "-m", "launch", "help", "algorithm.advantage"
    )
