"""What a publisher decides of the accounts of a transfer, without a policy, engines or Ray."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.config_rollout import TransferConfig
from actors.weights.publisher import Comparison, Publisher, WeightSyncError, largest_difference
from launch.run.build import canary_tokens

SENT = {"embed": 1, "head": 2}


def _account(*differences: float, received: dict[str, int] = SENT) -> Any:
    return [received], np.array(differences, dtype=np.float32)


@pytest.mark.parametrize(
    ("accounts", "expected"),
    [
        ([_account(0.0, -0.25), _account(0.125, 0.0)], 0.25),
        ([None, _account(0.5, 0.0)], 0.5),
        ([None], 0.0),
        ([], 0.0),
        ([_account(0.0, math.nan)], math.nan),
        ([_account(math.nan, 0.0), _account(0.0, 0.0)], math.nan),
        ([_account(0.0, math.inf)], math.inf),
    ],
)
def test_the_largest_difference_of_all_engines_decides(accounts: list[Any], expected: float) -> None:
    """Also where it is none: NaN is no agreement, wherever it stands."""
    made = Comparison(accounts, SENT, np.zeros(2, dtype=np.float32))
    for comparisons in ([made], [made, Comparison([_account(0.0, 0.0)], SENT, np.zeros(2, dtype=np.float32))]):
        assert largest_difference(comparisons, 3) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("received", "named"), [({"embed": 1, "head": 3}, "head"), ({"head": 2}, "embed"), ({}, "embed, head")]
)
def test_a_tensor_that_arrived_changed_or_not_at_all_is_named(received: dict[str, int], named: str) -> None:
    intact, changed = _account(0.0), ([SENT, received], np.zeros(1, dtype=np.float32))
    with pytest.raises(WeightSyncError, match=rf"^version 7: .* at vLLM worker 1: {named}$"):
        largest_difference([Comparison([intact, changed], SENT, np.zeros(1, dtype=np.float32))], 7)


def test_of_many_tensors_that_arrived_changed_five_are_named() -> None:
    sent = dict.fromkeys("abcdefg", 1)
    made = Comparison([([sent, sent | dict.fromkeys("bcdefg", 2)], np.zeros(1))], sent, np.zeros(1))
    with pytest.raises(WeightSyncError) as caught:
        largest_difference([made], 7)
    told = "version 7: 6 tensor(s) arrived changed or not at all at vLLM worker 1: b, c, d, e, f"
    assert str(caught.value) == told


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


@pytest.mark.parametrize("vocabulary", [1, 2, 24, 31, 62, 128, 310, 31 * 1024, 151_936])
def test_a_canary_has_as_many_tokens_as_there_can_be(vocabulary: int) -> None:
    """One token again and again would hardly notice a position or an embedding that is wrong."""
    tokens = canary_tokens(vocabulary, 24)
    assert len(set(tokens)) == min(24, vocabulary) and all(0 <= token < vocabulary for token in tokens)
