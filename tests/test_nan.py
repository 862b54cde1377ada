"""NaN is neither above nor below a bound: what is decided by a comparison must not pass, or vanish, because of it.

Accounts of weight transfers are in `tests/test_verify.py`.
"""

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.rollout.types import RolloutInfo
from actors.train.encoder import EncoderWorker
from actors.weights.probe import differing_tensors
from algorithms.encoder.mining import MiningRules, choose_negatives
from algorithms.loop import Best, improves
from algorithms.offline import dpo
from algorithms.offline.dpo import DPO
from algorithms.offline.preference_losses import kto_loss
from algorithms.rewards import math_size
from algorithms.rl.advantages import Moments, whiten
from algorithms.rl.losses import importance_weights
from algorithms.rl.metrics import rollout_metrics
from algorithms.rl.shaping import RunningMoments
from algorithms.rollouts.failures import Failures

NAN = math.nan


@pytest.mark.parametrize(
    ("expected", "found"), [([1.0, 2.0], [1.0, NAN]), ([NAN, 2.0], [NAN, 2.0]), ([1.0, NAN], [1.0, 2.0])]
)
def test_a_layer_that_answers_nan_is_named(expected: list[float], found: list[float]) -> None:
    """On either side."""
    trainer, engine = ({name: np.array(values)} for name, values in (("up.weight", expected), ("up", found)))
    assert differing_tensors(trainer, engine, {}) == ["up.weight"]
    assert differing_tensors(trainer | {"up.weight": np.ones(2)}, {"up": np.ones(2)}, {}) == []


@pytest.mark.parametrize("mode", ["mask", "truncate"])
def test_logprobs_that_are_nan_are_not_masked_away(mode: Any) -> None:
    """Their weight would be 0, and the loss finite."""
    rollout, mask = torch.tensor([0.0, NAN, NAN]), torch.tensor([True, True, False])
    weights = importance_weights(
        torch.zeros(3), rollout, mask, torch.zeros(3, dtype=torch.long), level="token", mode=mode, cap=2.0
    )
    assert weights.isnan().tolist() == [False, True, False] and weights[2] == 0


@pytest.mark.parametrize(("ratios", "kl"), [([NAN, 1.0], NAN), ([-1.0, -3.0], 0.0), ([1.0, 3.0], 2.0)])
def test_a_reference_point_of_kto_that_is_nan_is_refused(
    monkeypatch: pytest.MonkeyPatch, ratios: list[float], kl: float
) -> None:
    monkeypatch.setattr(dpo, "strangers", lambda rows: [1, 0])
    monkeypatch.setattr(dpo, "_joined", lambda *_: None)
    loop: Any = object.__new__(DPO)
    loop.roster, loop.max_length = {"policy": None}, 8
    loop.read, loop._read = lambda *_: np.array(ratios), lambda _: np.zeros(2)
    found = loop._mismatched_kl([["row"], ["other"]])
    assert found == pytest.approx(kl, nan_ok=True)
    logprobs, options = torch.zeros(2), {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    if math.isnan(kl):
        with pytest.raises(ValueError, match=r"^kl must be at least 0, got nan$"):
            kto_loss(logprobs, logprobs, torch.ones(2, dtype=torch.bool), found, **options)
    else:
        assert kto_loss(logprobs, logprobs, torch.ones(2, dtype=torch.bool), found, **options).isfinite().all()


def test_advantages_of_sums_that_overflow_are_not_all_equal() -> None:
    """Variance 0 would say that nothing is to be learned."""
    values, mask = np.array([1e200, -1e200, 3.0]), np.ones(3, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        moments = Moments.of(values, mask)
        assert math.isnan(moments.variance)
        assert np.isnan(whiten(values, mask, moments)).all()
    assert Moments.of(np.full(3, 0.1), mask).variance == 0.0


def test_a_deviation_that_is_nan_normalises_nothing_silently() -> None:
    moments = RunningMoments(count=3, mean=0.0, squared_distances=NAN)
    assert np.isnan(moments.normalise([1.0, 2.0])).all()
    assert RunningMoments(count=3, mean=0.0, squared_distances=0.0).normalise([1.0]).tolist() == [1.0]


@pytest.mark.parametrize("place", [0, 1])
def test_the_extremes_of_rewards_are_nan_wherever_one_is(place: int) -> None:
    rewards = [1.0, 1.0]
    rewards[place] = NAN
    score = [SimpleNamespace(reward=reward, parts={}) for reward in rewards]
    info = RolloutInfo(prompt_tokens=1, sampled_tokens=1, tokens=2, turns=1, status="ok", oldest_version=0)
    group: Any = SimpleNamespace(
        rewards=np.array(rewards), compared=np.ones(2), scores=score, infos=[info], prompt=SimpleNamespace(of_set=None)
    )
    metrics = rollout_metrics([group], 0, Failures(0))
    assert math.isnan(metrics["reward/min"]) and math.isnan(metrics["reward/max"])


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["eval/reward/mean", "eval/loss"])
def test_no_evaluation_is_the_best_that_is_not_finite(name: str, value: float) -> None:
    for best in (None, 0.5, NAN, math.inf):
        assert not improves(name, value, best)
        assert improves(name, 0.25 if name == "eval/loss" else 0.75, best)
    kept = Best(name)
    assert not kept.improved_by({name: value}) and kept.value is None


def test_passages_are_not_chosen_by_scores_that_are_nan() -> None:
    """They would be within every limit."""
    rules = MiningRules(negatives=2, first=0, last=4, max_score=0.5)
    for scores, positive in (([0.1, NAN], 0.9), ([0.1, 0.2], NAN)):
        with pytest.raises(FloatingPointError, match="are not numbers"):
            choose_negatives(np.array(scores, np.float32), np.float32(positive), rules, random.Random(0))


def test_a_guide_that_gives_nan_guides_nothing() -> None:
    """No passage would be too alike to be a negative."""

    def encode(texts: list[str], **_: Any) -> torch.Tensor:
        return torch.tensor([[1.0, NAN if text == "spoilt" else 0.0] for text in texts])

    worker: Any = object.__new__(EncoderWorker)
    model = SimpleNamespace(encode_query=encode, encode_document=encode, get_embedding_dimension=lambda: 2)
    worker.guides, worker.device = {"guide": model}, torch.device("cpu")
    texts = [SimpleNamespace(kind="query", text="a"), SimpleNamespace(kind="passage", text="b")]
    assert worker._guided(texts, "guide").tolist() == [[1.0, 0.0]] * 2
    texts.append(SimpleNamespace(kind="passage", text="spoilt"))
    with pytest.raises(FloatingPointError, match=r"^the vectors of the guide guide are not finite$"):
        worker._guided(texts, "guide")


def test_an_expression_whose_size_is_nan_is_too_large() -> None:
    for size in (NAN, math.inf, math_size.MOST_DIGITS + 1):
        with pytest.raises(math_size._TooLarge):
            math_size._checked(size)
    assert math_size._checked(math_size.MOST_DIGITS) == math_size.MOST_DIGITS
