"""Importance weights as counts that add up, and their quantiles, against a sort of all weights."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.rl.importance import BINS, quantile, weight_sums
from algorithms.rl.losses import importance_weights
from algorithms.rl.metrics import update_metrics

SPREADS = {"hardly any": 1e-3, "little": 0.05, "usual": 0.4, "wide": 3.0}
RESOLUTION = 2 ** (1 / 32) * (1 + 1e-6)
"""Half a bin, and float32's rounding."""


def batch(spread: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """old, rollout, mask and sequence ids of 40 sequences, two of them without actions."""
    random = torch.Generator().manual_seed(seed)
    lengths = [int(each) for each in torch.randint(1, 60, (40,), generator=random)]
    ids = torch.repeat_interleave(torch.arange(40), torch.tensor(lengths))
    old = -torch.rand(len(ids), generator=random) * 3
    rollout = old + spread * torch.randn(len(ids), generator=random)
    mask = (torch.rand(len(ids), generator=random) > 0.3) & (ids != 4) & (ids != 39)
    return old, torch.where(mask, rollout, -math.inf), mask, ids  # what stands beside the actions is not read


def weights_of(given: tuple[Tensor, Tensor, Tensor, Tensor], level: str) -> np.ndarray:
    """Every weight, sorted: of tokens, or of sequences that have actions."""
    old, rollout, mask, ids = given
    behind = (old - rollout)[mask].double().numpy()
    if level == "sequence":
        behind = np.array([behind[(ids[mask] == each).numpy()].sum() for each in ids[mask].unique()])
    return np.sort(np.exp(behind))


def told(sums: dict[str, Tensor]) -> dict[str, float]:
    """As the trainer tells them."""
    counts = {f"importance/counts/{at}": each for at, each in enumerate(sums["counts"].tolist())}
    return counts | {"importance/cut": sums["cut"].item()}


def report(*updates: dict[str, Tensor]) -> dict[str, float]:
    plain = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
    found = update_metrics([plain | told(each) for each in updates], [1] * len(updates), "policy")
    return {name: value for name, value in found.items() if name.startswith(("policy/", "importance/"))}


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", SPREADS)
def test_quantiles_are_those_of_all_weights_to_the_resolution(name: str, level: Any) -> None:
    given = batch(SPREADS[name])
    exact, found = weights_of(given, level), report(weight_sums(*given, level=level, cap=1.2))
    for label, share in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        wanted = min(max(exact[math.ceil(share * len(exact)) - 1], 1 / 64), 64)
        assert wanted / RESOLUTION <= found[f"policy/importance_weight_{label}"] <= wanted * RESOLUTION, label
    assert found["policy/importance_truncated_fraction"] == np.mean(exact > 1.2)
    assert len(found) == 4, "counts are no metrics of a step"


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_cut_are_the_weights_that_the_loss_cuts(level: Any, mode: Any) -> None:
    given = batch(0.4)
    used = importance_weights(*given, level=level, mode=mode, cap=1.2)
    whole = importance_weights(*given, level=level, mode=mode, cap=1e9)
    changed, ids = (used != whole) & given[2], given[3]
    cut = changed.sum() if level == "token" else len(ids[changed].unique())
    assert weight_sums(*given, level=level, cap=1.2)["cut"] == cut > 0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_any_division_tells_the_same_to_the_last_bit(level: Any) -> None:
    """Into micro-batches of whole sequences, in any order, some of them without a token, as an idle rank's are."""
    given = batch(0.4)
    whole = weight_sums(*given, level=level, cap=1.2)
    for size in (1, 7, 40):
        parts = []
        for first in range(0, 41, size):
            chosen = (given[3] >= first) & (given[3] < first + size)
            old, rollout, mask, ids = (each[chosen] for each in given)
            parts.append(weight_sums(old, rollout, mask, ids - first, level=level, cap=1.2))
        for name in ("counts", "cut"):
            assert torch.equal(sum(part[name] for part in reversed(parts)), whole[name]), name  # type: ignore[arg-type]
        kl = sum(part["kl"].item() for part in parts)
        assert kl == pytest.approx(whole["kl"].item(), rel=1e-12) and kl > 0


def test_updates_of_a_step_are_one_distribution() -> None:
    """Not the mean of their quantiles: a tenth of the weights is far off, and they are all in one update."""
    near = weight_sums(*weights([1.0] * 90), level="token", cap=2.0)
    far = weight_sums(*weights([8.0] * 10), level="token", cap=2.0)
    found = report(near, far)
    assert found == {
        "policy/importance_weight_p01": 1.0,
        "policy/importance_weight_p50": 1.0,
        "policy/importance_weight_p99": 8.0,
        "policy/importance_truncated_fraction": 0.1,
    }
    plain = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
    without = update_metrics([plain | told(near), plain | told(far)], [1, 0], "policy")
    assert without["policy/importance_weight_p99"] == 1.0, "an update without trained tokens tells nothing"


def weights(found: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of one sequence with these weights."""
    count = len(found)
    return torch.tensor(found).log(), torch.zeros(count), torch.ones(count).bool(), torch.zeros(count).long()


@pytest.mark.parametrize(
    ("weight", "place"), [(1.0, 1), (4.0, 4), (0.25, 0.25), (1e5, 64), (1e-9, 1 / 64), (0.0, 1 / 64)]
)
def test_powers_of_two_are_told_exactly_and_what_is_beyond_as_the_ends(weight: float, place: float) -> None:
    counts = weight_sums(*weights([weight]), level="token", cap=None)["counts"].tolist()
    assert len(counts) == BINS and sum(counts) == 1
    assert quantile(counts, 0.01) == quantile(counts, 1.0) == place


def test_a_quantile_counts_whole_weights() -> None:
    """The seventh of a hundred is the 0.07 quantile, though 0.07 x 100 is a little above 7 for a computer."""
    counts = weight_sums(*weights([0.5] * 7 + [2.0] * 93), level="token", cap=None)["counts"].tolist()
    assert 0.07 * 100 > 7
    assert [quantile(counts, share) for share in (0.01, 0.07, 0.071, 1.0)] == [0.5, 0.5, 2.0, 2.0]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_weight_that_is_no_number_makes_all_of_it_none(level: Any) -> None:
    """In no bin it would be lost, and the others look like all there are."""
    old, rollout, mask, ids = weights([1.0, 1.0, 1.0])
    old[1] = math.nan
    sums = weight_sums(old, rollout, mask, ids, level=level, cap=2.0)
    fine = weight_sums(*weights([1.0]), level=level, cap=2.0)
    assert sums["counts"].isnan().all() and math.isnan(sums["kl"].item())
    assert all(math.isnan(value) for value in report(fine, sums).values())


def test_where_nothing_is_cut_no_share_is_told_and_without_weights_nothing() -> None:
    plain = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
    sums = told(weight_sums(*weights([1.0, 2.0]), level="token", cap=None))
    assert sums.pop("importance/cut") == 0
    found = update_metrics([plain | sums], [1], "policy")
    assert set(found) == {
        "loss/policy", "grad_norm", "learning_rate",
        "policy/importance_weight_p01", "policy/importance_weight_p50", "policy/importance_weight_p99",
    }  # fmt: skip
    assert set(update_metrics([plain | dict.fromkeys(sums, 0.0)], [1], "policy")) == {
        "loss/policy",
        "grad_norm",
        "learning_rate",
    }
