"""What accounts of engines say against a ticket, and whom a disagreement names; engines that are a script, no Ray, no
vLLM."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.config_rollout import TransferConfig
from actors.weights.checksum import digest
from actors.weights.probe import trainer_answers
from actors.weights.store import sync
from actors.weights.ticket import Account, Got, Kind, Sent, Ticket
from actors.weights.verify import WeightSyncError, compare, tolerance, unbound, verify

TENSORS = {"embed": 1, "head": 2}
ADAPTER = {f"base_model.model.{layer}.lora_{which}.weight": 7 for layer in ("a.q", "b.v") for which in "AB"}


def logprobs(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def ticket(canary: bool = True, *, adapter: bool = False, digests: bool = True) -> Ticket:
    """Of version 7, with a canary whose logprobs are 0."""
    read = logprobs(0, 0) if canary else logprobs()
    parts: dict[Kind, Sent] = {"weights": Sent(0 if adapter else 7, digest(TENSORS) if digests else None, read)}
    if adapter:
        parts["adapter"] = Sent(7, digest(ADAPTER), read)
    return Ticket(7, parts, [3, 1, 4], 0.5, None)


def account(*differences: float, engine: int = 0, kind: Kind = "weights", workers: Any = (TENSORS,)) -> Account:
    return Account(engine, {kind: Got([digest(each) for each in workers], logprobs(*differences))})


class Engines:
    """The engines' group: answers to `worker_call`, by method, of each worker process."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return 2

    def submit(self, engine: int, _: Any, method: str, *args: Any) -> Any:
        self.asked.append((engine, method, *args))
        return self.answers[method]

    def gather(self, refs: list[Any], what: str, ranks: list[int]) -> list[Any]:
        return refs


class Trainer:
    """The trainer's side of a store, and the store."""

    def __init__(self, *accounts: Account, sent: Any = TENSORS, of: Ticket | None = None) -> None:
        self.accounts, self.tensors, self.ticket = accounts, sent, of or ticket()
        self.weights: dict[str, Any] = {}

    def publish(self, version: int, *, prove: bool = False) -> Ticket:
        assert version == self.ticket.version
        return self.ticket

    def fetch(self, found: Ticket, engines: Any) -> Any:
        assert found is self.ticket and list(engines) == [0, 1]
        return self.accounts

    def sent(self, kind: Kind) -> dict[str, int]:
        return self.tensors

    def answers(self, seed: int) -> dict[str, np.ndarray]:
        return trainer_answers(self.weights.items(), seed)


@pytest.mark.parametrize(
    ("accounts", "expected"),
    [
        ([account(0.0, -0.25), account(0.125, 0.0)], 0.25),
        ([account(0.5, 0.0)], 0.5),
        ([account(0.0, math.nan)], math.nan),
        ([account(math.nan, 0.0), account(0.0, 0.0)], math.nan),
        ([account(0.0, 0.0), account(math.nan, 0.0)], math.nan),
        ([account(0.0, math.inf)], math.inf),
        ([account(0.0)], math.nan),
        ([account()], math.nan),
        ([account(0.0, 0.0), account(0.0, 0.0, 0.0)], math.nan),
    ],
)
def test_the_largest_difference_of_all_engines_decides(accounts: list[Account], expected: float) -> None:
    """Also where it is none: NaN is no agreement, wherever it stands, nor is an answer of another length."""
    found = compare(ticket(), accounts).difference
    assert found == pytest.approx(expected, nan_ok=True)
    if not expected <= 0.5:
        with pytest.raises(WeightSyncError, match=rf"^after version 7 .* by {expected:.3g} \(allowed 0\.5\)"):
            verify(Trainer(), Engines(probe=[({}, {})]), ticket(), accounts, 0.5)


def test_a_difference_that_is_allowed_is_told() -> None:
    """The bound itself is allowed."""
    assert verify(Trainer(), Engines(), ticket(), [account(0.0, -0.5)], 0.5) == 0.5
    assert verify(Trainer(), Engines(), ticket(canary=False), [account()], 0.5) is None


@pytest.mark.parametrize(
    ("received", "named"),
    [({"embed": 1, "head": 3}, "head"), ({"head": 2}, "embed"), ({}, "embed, head"), (TENSORS | {"c": 4}, "c")],
)
def test_a_tensor_that_arrived_changed_or_not_at_all_is_named(received: dict[str, int], named: str) -> None:
    """Its names are asked for only then."""
    engines = Engines(received_checksums=[TENSORS, received])
    accounts = [account(0, 0), account(0, 0, engine=3, workers=(TENSORS, received))]
    with pytest.raises(WeightSyncError, match=rf"^version 7: .* at vLLM worker 1 of engine 3: {named}$"):
        verify(Trainer(), engines, ticket(), accounts, 1.0)
    assert engines.asked == [(3, "received_checksums")]
    verify(Trainer(), engines, ticket(), accounts[:1], 1.0)
    assert len(engines.asked) == 1


def test_of_many_tensors_that_arrived_changed_five_are_named() -> None:
    sent = dict.fromkeys("abcdefg", 1)
    received = sent | dict.fromkeys("bcdefg", 2)
    made = Ticket(7, {"weights": Sent(7, digest(sent), logprobs())}, [1], 0.0, None)
    with pytest.raises(WeightSyncError) as caught:
        verify(Trainer(sent=sent), Engines(received_checksums=[received]), made, [account(workers=(received,))], 1.0)
    told = "version 7: 6 tensor(s) arrived changed or not at all at vLLM worker 0 of engine 0: b, c, d, e, f"
    assert str(caught.value) == told


def test_a_digest_that_nobody_stands_by_is_no_agreement() -> None:
    with pytest.raises(WeightSyncError, match=r"0 tensor\(s\) .* which both sides now deny: its digest was another$"):
        verify(Trainer(), Engines(received_checksums=[TENSORS]), ticket(), [account(0, 0, workers=({"c": 1},))], 1.0)


@pytest.mark.parametrize("digests", [[], [""]])
def test_nothing_agrees_with_nothing(digests: list[str]) -> None:
    """No worker process, or no tensor, is no account, also of a part that has none."""
    for sent in (digest(TENSORS), ""):
        made = Ticket(7, {"weights": Sent(7, sent, logprobs())}, [1], 0.0, None)
        assert compare(made, [Account(2, {"weights": Got(digests, logprobs())})]).wrong == [(2, 0, "weights")]


@pytest.mark.parametrize(("adapter", "lacking"), [(False, "weights"), (True, "adapter")])
def test_an_engine_must_account_for_the_last_part(adapter: bool, lacking: str) -> None:
    """It may have had what is below an adapter already; without verification it need not say anything."""
    made = ticket(adapter=adapter)
    with pytest.raises(WeightSyncError, match=rf"^version 7: engine 4 gives no account of the {lacking}$"):
        compare(made, [Account(4)])
    if adapter:
        with pytest.raises(WeightSyncError, match="no account of the adapter"):
            compare(made, [account(0, 0)])
        assert compare(made, [account(0, 0, kind="adapter", workers=(ADAPTER,))]).wrong == []
    assert compare(ticket(canary=False, digests=False), [Account(4)]).difference is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_model.model.b.v.lora_B.weight": 8}, "1 of 2 layers; not with those of b.v"),
        (dict.fromkeys(ADAPTER, None), "0 of 2 layers; not with those of a.q, b.v"),
    ],
)
def test_layers_that_compute_without_their_adapters_are_named(changes: dict[str, Any], told: str) -> None:
    """Also where no canary is read."""
    bound = ADAPTER | changes
    accounts = [account(kind="adapter", workers=(ADAPTER, bound))]
    made, engines = ticket(canary=False, adapter=True), Engines(bound_checksums=[ADAPTER, bound])
    with pytest.raises(WeightSyncError) as caught:
        verify(Trainer(sent=ADAPTER), engines, made, accounts, 1.0)
    assert str(caught.value) == f"version 7: vLLM worker 1 of engine 0 computes with the adapters of {told}"
    assert engines.asked == [(0, "bound_checksums")]
    assert unbound({}, []) == "computes with the adapters of 0 of 0 layers; not with those of any"


@pytest.mark.parametrize(
    ("given", "dtype", "allowed"), [(None, "fp32", 1e-3), (None, "bf16", 0.15), (0.5, "fp32", 0.5)]
)
def test_the_canary_may_differ_by_so_much(given: float | None, dtype: Any, allowed: float) -> None:
    assert tolerance(TransferConfig(canary_tolerance=given), dtype) == allowed


def test_the_layers_behind_a_failed_canary_are_named() -> None:
    """Six answer otherwise, of which five are named; with tensor parallelism none can be asked."""
    import torch

    trainer = Trainer()
    trainer.weights = {f"layer.{index}.weight": torch.randn(4, 3) for index in range(7)}
    answers = {name.removesuffix(".weight"): answer for name, answer in trainer.answers(7).items()}
    spoilt = {name: answer + (name != "layer.6") for name, answer in answers.items()}
    accounts = [account(0.12345, 0), account(0, 0, engine=1)]
    told = "after version 7 the engine's logprobs differ from the trainer's by 0.123 (allowed 0.1) on the canary; "
    alike = "every tensor arrived intact and every layer answers alike: the models differ in something else"
    others = "every tensor arrived intact, but these layers compute with other values: " + ", ".join(
        f"layer.{index}.weight" for index in range(5)
    )
    for found, words in ((answers, alike), (spoilt, others)):
        engines = Engines(probe=[({name: answer.tobytes() for name, answer in found.items()}, {})])
        with pytest.raises(WeightSyncError) as caught:
            verify(trainer, engines, ticket(), accounts, 0.1)
        assert str(caught.value) == told + words and engines.asked == [(0, "probe", 7), (1, "probe", 7)]
    sharded = [account(0.12345, 0, workers=(TENSORS, TENSORS))]
    with pytest.raises(WeightSyncError, match=r"; with tensor_parallel > 1 single layers are not probed$"):
        verify(trainer, Engines(), ticket(), sharded, 0.1)


def test_a_sync_tells_its_seconds_and_differences() -> None:
    """Of publishing, and the longest that an engine took to fetch; what was merged is told where it was."""
    accounts = [replace(account(0.25, 0), seconds=2.0), replace(account(0, 0, engine=1), seconds=4.0)]
    _, found = sync(Trainer(*accounts), Engines(), 7, 0.5)
    assert found == {"weights/sync_seconds": 0.5 + 4.0, "weights/canary_difference": 0.25}
    merged = Ticket(7, {"weights": Sent(7, None, logprobs())}, [1], 0.0, 0.125)
    _, told = sync(Trainer(Account(0), Account(1), of=merged), Engines(), 7, 0.5)
    assert told.keys() == {"weights/sync_seconds", "weights/merge_error"} and told["weights/merge_error"] == 0.125
