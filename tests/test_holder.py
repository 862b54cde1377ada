"""Weights through a holder between a real policy and real vLLM engines: who comes late, twice, or dies, and the policy
that is busy, or gone, meanwhile.

The tests of a model follow one another: they share its three processes, and the policy ends in them.
"""

import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.config import LoraConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.episodes import Sequence
from actors.group import ActorGroup, GroupError, Slot
from actors.models.skeleton import write_skeleton
from actors.pulse import Pulse
from actors.rollout.types import Request, Sampling
from actors.rollout.worker import CONCURRENCY
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from actors.weights.holder import HOLDER_CONCURRENCY, WeightHolder
from actors.weights.holder_store import HolderStore
from actors.weights.store import sync
from actors.weights.ticket import Account, Ticket
from actors.weights.verify import WeightSyncError, verify
from algorithms.offline.sft import sft_loss
from tests.faulty_engines import (
    CANARY,
    ROLLOUT,
    Engine,
    changed_in_transit,
    dies_while_receiving,
    fails_half_way,
    misnamed_adapter,
    waits_while_receiving,
    zeroed_layer,
)

TOLERANCE = 1e-3
LAYER = "model.layers.1.mlp.down_proj"
IDS = count()
"""Of requests."""


class Policy(PolicyWorker):
    """A rank that a test can keep busy."""

    def be_busy(self, file: Path) -> None:
        """Until the file is there."""
        while not file.exists():
            time.sleep(0.05)


@dataclass
class Trio:
    """A policy, the holder that it publishes to, and engines, of which the second starts late."""

    policy: ActorGroup[Policy]
    holder: ActorGroup[WeightHolder]
    engines: ActorGroup[Engine]
    store: HolderStore
    start_late: Callable[[], None]
    ticket: Ticket | None = None

    def train(self) -> None:
        """One optimizer update that teaches random sequences."""
        generator = np.random.default_rng(self.store.version + 1)
        plan = [[Sequence(token_ids=generator.integers(0, 90, size=40), action_mask=np.arange(40) > 0)] * 8]
        totals = Totals(tokens=39 * 8, sequences=8, trained_tokens=39 * 8)
        self.policy.call(PolicyWorker.learn, plan, totals, sft_loss)

    def publish(self) -> Ticket:
        """The weights as the next version."""
        self.ticket = self.store.publish(self.store.version + 1)
        return self.ticket

    def fetch(self, *engines: int) -> list[Account]:
        """What was published last, and that it is used."""
        assert self.ticket is not None
        accounts = self.store.fetch(self.ticket, engines)
        difference = verify(self.store, self.engines, self.ticket, accounts, TOLERANCE)
        assert difference is not None and difference < 1e-4
        return accounts

    def engine(self, engine: int, method: Any, *arguments: Any) -> Any:
        """Call a method of an engine."""
        return self.engines.gather([self.engines.submit(engine, method, *arguments)], "call", ranks=[engine])[0]

    def versions(self, engine: int) -> set[int]:
        """Of the weights that sample a response now."""
        number, sampling = next(IDS), Sampling(samples=4, temperature=ROLLOUT.temperature, max_tokens=16)
        self.engine(engine, Engine.submit, [Request(id=number, token_ids=[5, 6, 7], sampling=sampling)], None)
        [finished] = self.engine(engine, Engine.poll, 60.0)
        assert (finished.request, finished.error) == (number, "")
        episodes = self.engine(engine, Engine.collect, number)[1]
        return {span.version for episode in episodes for turn in episode.turns for span in turn.versions}


class LateGroup(ActorGroup[Engine]):
    """Engines of which `spawn` starts the first, and `start_late` the second."""

    def spawn(self, *args: Any, **kwargs: Any) -> None:
        """Start the first engine."""
        self._arguments = args, kwargs
        self.handles = [self._start(0)]

    def start_late(self) -> None:
        """Start the second engine, and wait for it."""
        self.handles.append(self._start(1))
        self.gather([self.submit(1, Engine.ready)], "ready", ranks=[1])


@pytest.fixture(scope="module")
def slot(local_ray: None) -> Iterator[Slot]:
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    yield Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    remove_placement_group(placement)


def _started(slot: Slot, directory: Path, lora: LoraConfig | None = None) -> Trio:
    sizes: dict[str, Any] = {"hidden_size": 128, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 512}
    model = ModelConfig(init=ModelInit(family="llama", tie_embeddings=False, **sizes), lora=lora)
    skeleton = str(write_skeleton(model, directory / "model"))
    options: dict[str, Any] = {"timeout_s": 120, "log_directory": str(directory)}
    engines = LateGroup("rollout", Engine, [slot, slot], concurrency=CONCURRENCY, **options)
    engines.spawn(skeleton, ROLLOUT, model, "gloo", 0)
    holder = ActorGroup("holder", WeightHolder, [slot], concurrency=HOLDER_CONCURRENCY, **options)
    holder.spawn(ROLLOUT.transfer.bucket_mib * 2**20, ROLLOUT.transfer.timeout_s)
    policy = ActorGroup("policy", Policy, [slot], **options)
    policy.spawn(model, skeleton, TrainerConfig(zero_stage=0, optimizer=OptimizerConfig(lr=0.02), timeout_s=120), 0)
    address, port = policy.call(PolicyWorker.address)[0]
    policy.call(PolicyWorker.build, address, port, 100)
    engines.gather([engines.submit(0, Engine.ready)], "ready")
    policy.call(PolicyWorker.connect_holder, holder.handles[0], ROLLOUT.transfer)
    store = HolderStore(
        policy=policy,
        holder=holder,
        rollout=engines,
        tensor_parallel=1,
        canary=CANARY,
        verify_every=1,
        timeout_s=ROLLOUT.transfer.timeout_s,
    )
    return Trio(policy, holder, engines, store, engines.start_late)


def _end(trio: Trio) -> None:
    for group in (trio.policy, trio.holder, trio.engines):
        group.shutdown()


@pytest.fixture(scope="module")
def trio(slot: Slot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    started = _started(slot, tmp_path_factory.mktemp("whole"))
    yield started
    _end(started)


def test_each_version_reaches_an_engine_and_is_used(trio: Trio) -> None:
    """What the engine got is what the policy has; accounts are as small as if there were one tensor."""
    for version in range(4):
        trio.train()
        assert sync(trio.store, [None], version, TOLERANCE)[1]["weights/canary_difference"] < 1e-4
        checksums = trio.policy.call(PolicyWorker.checksums)[0]
        assert trio.engine(0, Engine.worker_call, "received_checksums")[0] == checksums
        assert trio.versions(0) == {version}
    assert len(checksums) > 20
    trio.publish()
    [account] = trio.fetch(0)
    assert len(pickle.dumps(account)) < 1000
    assert len(account.parts["weights"].digests[0]) == 64


def test_an_engine_that_starts_late_gets_the_weights_while_the_policy_is_busy(trio: Trio, tmp_path: Path) -> None:
    """It was not there when anything was published, and no rank of the policy answers meanwhile."""
    busy = trio.policy.submit(0, Policy.be_busy, tmp_path / "end")
    trio.start_late()
    assert trio.engine(1, Engine.weights_held) == -1
    trio.fetch(1)
    assert ray.wait([busy], timeout=0)[1] == [busy]
    assert trio.versions(1) == {trio.store.version} == trio.versions(0)
    (tmp_path / "end").touch()
    trio.policy.gather([busy], "be_busy")


def test_a_version_that_is_not_the_last_cannot_be_fetched(trio: Trio) -> None:
    old = trio.ticket
    assert old is not None
    trio.publish()
    with pytest.raises(ValueError, match=r"^version 4 cannot be fetched: the holder has version 5$"):
        trio.store.fetch(old, [0])


def start(trio: Trio, engine: int) -> int:
    """Let an engine sample some long responses to a prompt; returns the request's id once they have tokens."""
    number, sampling = next(IDS), Sampling(samples=8, temperature=ROLLOUT.temperature, max_tokens=440)
    trio.engine(engine, Engine.submit, [Request(id=number, token_ids=[5, 6, 7], sampling=sampling)], None)
    while not trio.engine(engine, Engine.tokens_so_far):
        pass
    return number


def response_versions(trio: Trio, engine: int, number: int) -> list[list[int]]:
    """Of the weights that have sampled each of the responses, which have ended."""
    [finished] = trio.engine(engine, Engine.poll, 60.0)
    assert (finished.request, finished.error, finished.aborted) == (number, "", False)
    turns = [episode.turns[0] for episode in trio.engine(engine, Engine.collect, number)[1]]
    return [[span.version for span in turn.versions] for turn in turns]


def test_engines_fetch_one_after_the_other_while_others_go_on(trio: Trio, tmp_path: Path) -> None:
    """What runs on one that fetches is as its rollout.on_update says; the other has the old version until its turn."""
    trio.store.rolling = True
    trio.engine(0, Engine.update_as, "restart")
    trio.engine(1, Engine.update_as, "keep_cache")
    trio.engine(0, Engine.break_with, waits_while_receiving, tmp_path / "waits")
    going = [start(trio, engine) for engine in (0, 1)]
    with ThreadPoolExecutor(1) as beside:
        fetching = beside.submit(trio.fetch, 0, 1)
        while not (tmp_path / "waits").exists():
            assert not fetching.done()
            time.sleep(0.05)
        assert response_versions(trio, 1, going[1]) == [[4]] * 8, "it samples while the other one stands still"
        assert trio.engine(1, Engine.weights_held) == 4
        going[1] = start(trio, 1)
        trio.engine(1, Engine.pause)  # so that its turn comes before its responses have ended
        time.sleep(1.0)
        (tmp_path / "waits").unlink()
        accounts = fetching.result(60)
    trio.engine(0, Engine.repair)
    assert [account.engine for account in accounts] == [0, 1]
    assert accounts[0].seconds > 1.0 and accounts[0].seconds > accounts[1].seconds > 0
    restarted, kept = (response_versions(trio, engine, number) for engine, number in enumerate(going))
    assert restarted == [[5]] * 8 and trio.engine(0, Engine.stats).discarded_tokens > 0
    assert [4, 5] in kept and all(each in ([4, 5], [4], [5]) for each in kept)


def test_one_that_fails_does_not_keep_others_from_their_turn(trio: Trio) -> None:
    trio.engine(0, Engine.break_with, fails_half_way)
    trio.engine(1, Engine.break_with, fails_half_way)
    assert trio.ticket is not None
    with pytest.raises(GroupError, match=r"^rollout\[0\]\.fetch: .* half of it is new.*; and engines \[1\] failed$"):
        trio.store.fetch(trio.ticket, [0, 1])
    for engine in (0, 1):
        trio.engine(engine, Engine.repair)
    trio.engine(0, Engine.break_with, fails_half_way)
    with pytest.raises(GroupError, match=r"^rollout\[0\]\.fetch: .* half of it is new((?!and engines).)*$"):
        trio.store.fetch(trio.ticket, [0, 1])
    assert trio.versions(1) == {5}
    trio.engine(0, Engine.repair)
    trio.fetch(0, 1)
    trio.store.rolling = False
    for engine in (0, 1):
        trio.engine(engine, Engine.update_as, "recompute")


def test_engines_fetch_twice_without_a_policy(trio: Trio) -> None:
    """Both at one time, and each again; the policy's process has ended."""
    trio.policy.shutdown()
    first, second = trio.fetch(0, 1), [*trio.fetch(1), *trio.fetch(0)]
    assert [account.engine for account in first + second] == [0, 1, 1, 0]
    digests = {digest for account in first + second for digest in account.parts["weights"].digests}
    assert len(digests) == 1
    assert trio.versions(0) == trio.versions(1) == {5}


@pytest.mark.parametrize(
    ("fault", "of", "told"),
    [
        (changed_in_transit, f"{LAYER}.weight", r"^version 5: 1 tensor\(s\) .* at vLLM worker 0 of engine 1: "),
        (zeroed_layer, LAYER, r"^after version 5 .* on the canary; .* these layers compute with other values: "),
    ],
)
def test_an_engine_that_computes_with_other_weights_is_told_without_a_policy(
    trio: Trio, fault: Callable[..., Any], of: str, told: str
) -> None:
    trio.engine(1, Engine.break_with, fault, of)
    with pytest.raises(WeightSyncError, match=rf"{told}{LAYER}\.weight$"):
        trio.fetch(0, 1)
    trio.engine(1, Engine.repair)
    trio.fetch(1)


def test_nothing_is_sampled_from_weights_that_are_new_by_half(trio: Trio) -> None:
    """What runs ends with the tokens of the old ones, and what comes then is refused, until whole weights are there."""
    trio.engine(1, Engine.break_with, fails_half_way)
    number, sampling = next(IDS), Sampling(samples=16, temperature=ROLLOUT.temperature, max_tokens=440)
    request = Request(id=number, token_ids=[5, 6, 7], sampling=sampling)
    taken = trio.engines.submit(1, Engine.submit, [request], None)  # not waited for: the weights come while it runs
    assert trio.ticket is not None
    with pytest.raises(GroupError, match="half of it is new"):
        trio.store.fetch(trio.ticket, [1])
    trio.engines.gather([taken], "submit", ranks=[1])
    [finished] = trio.engine(1, Engine.poll, 60.0)
    assert finished.request == number
    turns = [turn for episode in trio.engine(1, Engine.collect, number)[1] for turn in episode.turns]
    assert "abort" in {turn.finish_reason for turn in turns}, "some were running"
    assert {span.version for turn in turns for span in turn.versions} <= {5}
    with pytest.raises(GroupError, match="before the first weights arrived"):
        trio.engine(1, Engine.submit, [request], None)
    trio.engine(1, Engine.repair)
    trio.fetch(1)
    assert trio.versions(1) == {5}


def test_an_engine_that_dies_takes_no_other_along(trio: Trio) -> None:
    """While it receives, and before; the other one has the weights, and goes on."""
    trio.engine(1, Engine.break_with, dies_while_receiving)
    assert trio.ticket is not None
    began = time.monotonic()
    with pytest.raises(GroupError, match=r"^rollout\[1\]\.fetch: the process died \("):
        trio.store.fetch(trio.ticket, [0, 1])
    with pytest.raises(GroupError, match=r"^rollout\[1\]\.weights_held: the process died \("):
        trio.store.fetch(trio.ticket, [0, 1])
    assert time.monotonic() - began < 30, "no deadline passed"
    assert trio.versions(0) == {5}
    trio.fetch(0)


def running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_holder_that_dies_is_named_and_engines_keep_what_they_have(trio: Trio, tmp_path: Path) -> None:
    """While it serves, and before."""
    assert trio.ticket is not None
    trio.engine(0, Engine.break_with, waits_while_receiving, tmp_path / "waits")
    with ThreadPoolExecutor(1) as beside:
        fetching = beside.submit(trio.store.fetch, trio.ticket, [0])
        while not (tmp_path / "waits").exists():
            assert not fetching.done()
            time.sleep(0.05)
        [pulse] = trio.holder.pulses(30)
        assert isinstance(pulse, Pulse)
        ray.kill(trio.holder.handles[0])
        # Until it is really gone: what it had sent before would be enough for the engine.
        until = time.monotonic() + 30
        while running(pulse.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not running(pulse.pid)
        (tmp_path / "waits").unlink()
        with pytest.raises(GroupError, match=r"^holder\[0\]\.serve: the process died \("):
            fetching.result(60)
    with pytest.raises(GroupError, match=r"^holder\[0\]\.offer: the process died \("):
        trio.store.fetch(trio.ticket, [0])
    assert trio.versions(0) == {5}


@pytest.fixture(scope="module")
def adapted(slot: Slot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    started = _started(slot, tmp_path_factory.mktemp("adapter"), LoraConfig(rank=6, alpha=20))
    yield started
    _end(started)


def test_a_late_engine_gets_the_base_and_its_adapter_and_then_adapters_alone(adapted: Trio) -> None:
    """The base went with version 0, and is still verified; an engine that has it gets no more than adapters."""
    for _ in range(3):
        adapted.publish()
        adapted.train()
    [account] = adapted.fetch(0)
    assert list(account.parts) == ["weights", "adapter"]
    assert adapted.engine(0, Engine.weights_held) == 0
    assert adapted.versions(0) == {2}
    before = adapted.engine(0, Engine.canary)
    adapted.publish()
    adapted.policy.shutdown()
    adapted.start_late()
    first, second = adapted.fetch(0, 1)
    assert (list(first.parts), list(second.parts)) == (["adapter"], ["weights", "adapter"])
    assert adapted.versions(0) == adapted.versions(1) == {3}
    after = [adapted.engine(engine, Engine.canary) for engine in (0, 1)]
    np.testing.assert_array_equal(*after)
    assert np.abs(after[0] - before).max() > 1e-2


def test_layers_without_their_adapter_are_named_without_a_policy(adapted: Trio) -> None:
    adapted.engine(1, Engine.break_with, misnamed_adapter, "layers.1.self_attn.k_proj")
    with pytest.raises(
        WeightSyncError, match=r"engine 1 computes .* 13 of 14 .* those of model\.layers\.1\.self_attn\.k_proj$"
    ):
        adapted.fetch(0, 1)
    adapted.engine(1, Engine.repair)
    adapted.fetch(1)
