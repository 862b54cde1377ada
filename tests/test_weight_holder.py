"""What a holder keeps and serves, over real gloo in this process: no Ray, no vLLM, no policy."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.group import ONE_NODE
from actors.rollout.worker import Adapter
from actors.weights.checksum import checksum
from actors.weights.gloo_sender import GlooSender
from actors.weights.holder import WeightHolder
from actors.weights.offer import Offer, join_offer
from actors.weights.probe import trainer_answers
from actors.weights.wire import Meta, as_info, as_metas, buckets, receive_bucket, size, views

BUCKET_BYTES, TIMEOUT_S, U8 = 256, 5.0, torch.uint8
Tensors = dict[str, torch.Tensor]


class Client:
    """Of a holder in this process."""

    def __init__(self, holder: WeightHolder) -> None:
        self.init_weight_transfer_engine = holder.join
        self.holder, self.version = holder, 0

    def take(self, update_info: Any) -> None:
        self.holder.receive(update_info)
        self.holder.keep(self.version)


class Source:
    """Some tensors, of types and sizes that fill buckets unevenly; stops early if told so."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.stops = False

    def renew(self, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"a": (7, 3), "b": (5,), "large": (40, 9), "c": (), "d": (2, 8)}
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.tensors = made | {"half": made["d"].bfloat16()}
        return self.tensors

    def metadata(self) -> list[Meta]:
        return [Meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.tensors.items():
            if self.stops and name == "c":
                raise RuntimeError("the trainer is lost")
            yield name, tensor


@pytest.fixture(params=["one node", "several"])
def sender(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GlooSender:
    """Has met a holder that has nothing yet, on its own node, or as if on another."""
    monkeypatch.setenv(ONE_NODE, "1")
    holder = WeightHolder(0, 1, BUCKET_BYTES, TIMEOUT_S)
    arguments: dict[str, Any] = {"rank": 0, "world_size": 2, "address": "127.0.0.1", "bucket_bytes": BUCKET_BYTES}
    arguments |= {"timeout_s": TIMEOUT_S, "client": Client(holder), "source": Source()}
    made = GlooSender(**arguments)
    if request.param == "several":
        monkeypatch.setattr(made.outgoing, "empty", lambda bucket: torch.empty(sum(map(size, bucket)), dtype=U8))
    return made


def publish(sender: Any, version: int) -> Tensors:
    sender.client.version = version
    sent = sender.source.renew(version)
    sender.send_weights()
    return sent


def fetched(offer: Offer, worker: int, workers: int, between: Callable[[], None] = lambda: None) -> Tensors:
    """As a worker process of an engine does it."""
    group, found = join_offer(offer, 1 + worker, 1 + workers), {}
    for bucket in buckets(as_metas(**offer.tensors), offer.bucket_bytes):
        between()
        found |= dict(views(receive_bucket(group, bucket), bucket))
    group.barrier().wait()
    return found


def started(pool: ThreadPoolExecutor, holder: Any, version: int, key: str, workers: int) -> list[Future[Any]]:
    """The holder's side of a serving, and then those of the worker processes."""
    offer = replace(holder.offer(version), key=key)
    serving = pool.submit(holder.serve, offer, workers)
    return [serving, *(pool.submit(fetched, offer, worker, workers) for worker in range(workers))]


def same(found: Tensors, sent: Tensors) -> bool:
    return found.keys() == sent.keys() and all(torch.equal(tensor, sent[name]) for name, tensor in found.items())


def test_what_is_fetched_is_what_was_sent(sender: Any) -> None:
    """By engines of one and of several processes, at one time and one after the other."""
    holder = sender.client.holder
    with ThreadPoolExecutor(12) as pool:
        for version in (1, 2):
            sent = publish(sender, version)
            for again in range(2):
                calls = [started(pool, holder, version, f"{version} {again} {n}", n) for n in (1, 3)]
                for serving, *workers in calls:
                    assert serving.result(TIMEOUT_S) is None
                    assert all(same(worker.result(TIMEOUT_S), sent) for worker in workers)


def test_only_the_last_version_is_there(sender: Any) -> None:
    holder = sender.client.holder
    with pytest.raises(ValueError, match=r"^asked for the weights of version 1, the holder has none$"):
        holder.offer(1)
    with pytest.raises(RuntimeError, match=r"^asked to keep version 1 before all of it arrived$"):
        holder.keep(1)
    publish(sender, 1)
    publish(sender, 2)
    with pytest.raises(ValueError, match=r"^asked for the weights of version 1, the holder has those of version 2$"):
        holder.offer(1)
    assert holder.offer(2).tensors == as_info(sender.source.metadata())
    pulse = holder.pulse()
    assert (pulse.method, pulse.done) == (None, len(holder.held.buffers)) and pulse.done > 2


def test_a_serving_goes_on_with_its_version_when_the_next_arrives(sender: Any) -> None:
    holder, comes = sender.client.holder, threading.Event()
    old = publish(sender, 1)
    offer = replace(holder.offer(1), key="slow")
    with ThreadPoolExecutor(2) as pool:
        serving = pool.submit(holder.serve, offer, 1)
        fetching = pool.submit(fetched, offer, 0, 1, lambda: assert_true(comes.wait(TIMEOUT_S)))
        time.sleep(0.2)
        new = publish(sender, 2)
        comes.set()
        assert same(fetching.result(TIMEOUT_S), old) and not same(new, old)
        serving.result(TIMEOUT_S)


def assert_true(value: bool) -> None:
    assert value


def test_a_trainer_that_is_lost_leaves_what_there_was(sender: Any) -> None:
    """The holder hears of its end, and serves the version before."""
    holder, sent = sender.client.holder, publish(sender, 1)
    sender.source.stops = True
    with pytest.raises(RuntimeError, match="the trainer is lost"):
        publish(sender, 2)
    with pytest.raises(RuntimeError, match="before all of it arrived"):
        holder.keep(2)
    with ThreadPoolExecutor(2) as pool:
        _, worker = started(pool, holder, 1, "after", 1)
        assert same(worker.result(TIMEOUT_S), sent)


def test_an_engine_that_does_not_come_keeps_nobody_waiting(sender: Any) -> None:
    """The holder gives it up at its deadline, and serves others meanwhile."""
    holder, sent = sender.client.holder, publish(sender, 1)
    with ThreadPoolExecutor(4) as pool:
        lonely = pool.submit(holder.serve, replace(holder.offer(1), key="nobody", timeout_s=1.0), 1)
        serving, worker = started(pool, holder, 1, "somebody", 1)
        assert same(worker.result(TIMEOUT_S), sent) and not lonely.done()
        serving.result(TIMEOUT_S)
        with pytest.raises(RuntimeError):
            lonely.result(TIMEOUT_S)


def test_an_adapter_is_of_one_version_and_of_the_weights_below_it(sender: Any) -> None:
    holder, adapter = sender.client.holder, Adapter("{}", b"a")
    with pytest.raises(ValueError, match=r"^asked for the adapter of version 2, the holder has none$"):
        holder.adapter_of(2)
    publish(sender, 1)
    holder.keep_adapter(adapter, 2)
    assert holder.adapter_of(2) is adapter and holder.offer(1).version == 1
    with pytest.raises(ValueError, match=r"^asked for the adapter of version 3, the holder has that of version 2$"):
        holder.adapter_of(3)
    publish(sender, 3)
    with pytest.raises(ValueError, match=r"has none$"):
        holder.adapter_of(2)


def test_what_the_trainer_would_say_is_there_without_it(sender: Any) -> None:
    """Checksums as they were told, and answers to the probe, which are the same as those of the tensors themselves."""
    holder, sent = sender.client.holder, publish(sender, 1)
    checksums = {name: checksum(tensor) for name, tensor in sent.items()}
    holder.note("weights", checksums)
    assert holder.sent("weights") == checksums
    expected, found = trainer_answers(sent.items(), 7), holder.answers(7)
    assert found.keys() == expected.keys() and len(found) == 5
    assert all((found[name] == answer).all() for name, answer in expected.items())
