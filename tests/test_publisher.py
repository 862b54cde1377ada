"""What merging may lose, and which prompt tells whether engines compute alike; without a policy, engines or Ray."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis.strategies import integers

from actors.config_rollout import TransferConfig
from actors.weights.publisher import Publisher
from actors.weights.verify import WeightSyncError
from launch.run.weights import canary_tokens


@pytest.mark.parametrize(
    ("error", "allowed", "refused"),
    [(0.1, 0.1, False), (0.11, 0.1, True), (math.nan, 0.1, True), (0.9, None, False), (0.0, 0.1, False)],
)
def test_merged_weights_may_lose_so_much(error: float, allowed: float | None, refused: bool) -> None:
    """The bound itself is allowed, and NaN is beyond it."""
    publisher: Any = object.__new__(Publisher)
    publisher.client, publisher.config = (
        SimpleNamespace(version=4),
        TransferConfig(lora="merged", max_merge_error=allowed),
    )
    publisher.sends_adapter, publisher.model = False, torch.nn.Sequential(_Adapted())
    publisher.source = SimpleNamespace(merge_error=SimpleNamespace(value=error))
    if refused:
        with pytest.raises(WeightSyncError) as caught:
            publisher.merge_error()
        assert str(caught.value) == (
            f"after version 4 the engines lack {error:.3g} of what the adapters change, which rounding took from the "
            f"merged weights (rollout.transfer.max_merge_error {allowed:g}): set rollout.transfer.lora=adapter, "
            f"or model.dtype=fp32"
        )
    else:
        assert publisher.merge_error() == error
    publisher.sends_adapter = True
    assert publisher.merge_error() is None


class _Adapted(torch.nn.Module):
    """What tells an adapted layer."""

    lora_A = None


@given(vocabulary=integers(1, 2**20), length=integers(1, 64))
@example(vocabulary=31, length=24)
@example(vocabulary=31 * 32 * 33, length=24)
@example(vocabulary=math.lcm(*range(31, 80)), length=24)
def test_a_canary_has_as_many_tokens_as_there_can_be(vocabulary: int, length: int) -> None:
    """One token again and again would hardly notice a position or an embedding that is wrong."""
    tokens = canary_tokens(vocabulary, length)
    assert len(tokens) == length and all(0 <= token < vocabulary for token in tokens)
    assert len(set(tokens)) == min(length, vocabulary)


@pytest.mark.parametrize("vocabulary", range(1, 400))
def test_a_canary_repeats_no_token_of_a_small_vocabulary_early(vocabulary: int) -> None:
    assert len(set(canary_tokens(vocabulary, 24))) == min(24, vocabulary)
