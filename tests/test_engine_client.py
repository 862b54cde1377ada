"""Whose fault a failed transfer is: that of the engine that died, failed or stands still, told after one deadline."""

import io
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray._private import worker as ray_worker
from ray.util.placement_group import placement_group, remove_placement_group

from actors.group import ActorGroup, GroupError, Slot
from actors.weights import gloo_sender as module
from actors.weights.engine_client import EngineClient
from actors.weights.gloo_sender import GlooSender
from actors.weights.publisher import Publisher
from actors.weights.wire import Meta, Outgoing
from launch.run.cluster import _keep_messages
from launch.run.farewell import _worker_log
from tests.fake_receivers import Engine

DEADLINE_S = 4.0


class Transfer:
    """Of a rank that asks the engines to receive, and sends nothing."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client

    def send_weights(self) -> None:
        self.client.take(None)


class Policy:
    """A rank that publishes."""

    def __init__(self, rank: int, ranks: int) -> None:
        pass

    def publish(self, engines: list[Any]) -> None:
        client = EngineClient(engines, 1, DEADLINE_S)
        publisher: Any = object.__new__(Publisher)
        publisher.client, publisher.rank, publisher.transfer = client, 0, Transfer(client)
        publisher.source = SimpleNamespace(canary=None)
        publisher._send_weights(1, None)


Pair = tuple[ActorGroup[Policy], ActorGroup[Engine]]


@pytest.fixture(scope="module")
def policy(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorGroup[Policy]]:
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    group = ActorGroup("policy", Policy, [slot], timeout_s=60, log_directory=str(tmp_path_factory.mktemp("logs")))
    group.slot = slot  # type: ignore[attr-defined]
    group.spawn()
    yield group
    group.shutdown()
    remove_placement_group(placement)


@pytest.fixture
def pair(policy: ActorGroup[Policy], tmp_path: Path) -> Iterator[Pair]:
    slots = [policy.slot] * 2  # type: ignore[attr-defined]
    rollout = ActorGroup("rollout", Engine, slots, timeout_s=60, log_directory=str(tmp_path))
    rollout.spawn()
    yield policy, rollout
    rollout.shutdown()


@pytest.mark.parametrize(
    ("first", "second", "told", "log"),
    [
        ("answer", "die", "rollout[1].update_weights: the process died (", 1),
        ("lose the others", "die", "rollout[1].update_weights: the process died (", 1),
        ("answer", "freeze", f"rollout.update_weights: no answer from rank(s) [1] within {DEADLINE_S:g} s", 1),
        ("fail", "answer", "rollout[0].update_weights: ValueError: no room for layer 3", 0),
    ],
)
def test_a_failed_transfer_is_told_of_the_engine(
    pair: Pair, tmp_path: Path, first: str, second: str, told: str, log: int
) -> None:
    policy, rollout = pair
    rollout.scatter(Engine.will, [(first,), (second,)])
    for name in ("policy-0", "rollout-0", "rollout-1"):
        (tmp_path / f"{name}.log").touch()
    began = time.monotonic()
    with pytest.raises(GroupError) as caught:
        policy.call(Policy.publish, rollout.handles)
    assert str(caught.value).startswith(told)
    assert _worker_log(caught.value, tmp_path) == tmp_path / f"rollout-{log}.log"
    assert time.monotonic() - began < DEADLINE_S + 7, "one deadline, and a moment for the others to go on"
    healthy = 0 if second in ("die", "freeze") else 1
    assert rollout.gather([rollout.submit(healthy, Engine.state)], "state", ranks=[healthy]) == ["resumed"]


class Deaf:
    """The client of engines of which one has died: it says so later than the broadcast breaks."""

    def take(self, _: Any) -> None:
        time.sleep(0.5)
        raise GroupError("rollout[1].update_weights: the process died (of age)")


def test_a_broken_broadcast_waits_for_what_the_engines_say() -> None:
    with pytest.raises(GroupError, match="the process died"):
        _sender([("w", torch.zeros(2))]).send_weights()


def test_what_fails_on_the_senders_side_is_not_hidden_by_what_the_engines_say() -> None:
    """They time out because of it."""

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        raise RuntimeError("CUDA out of memory")
        yield

    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        _sender(gathered()).send_weights()
    assert time.monotonic() - began < 0.4, "nobody is waited for"


def _sender(tensors: Iterable[tuple[str, torch.Tensor]]) -> GlooSender:
    """To engines of which one has died, as the first broadcast notices."""
    sender: Any = object.__new__(GlooSender)
    sender.is_sender, sender.timeout_s, sender.bucket_bytes, sender.client = True, 60.0, 64, Deaf()

    class Source:
        """Of one tensor."""

        def metadata(self) -> list[Meta]:
            return [Meta("w", torch.float32, (2,))]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(tensors)

    def broken(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:3412")

    group: Any = SimpleNamespace(broadcast=broken)
    sender.source, sender.outgoing = Source(), Outgoing(group)
    return sender


def test_engines_that_say_nothing_do_not_hide_a_broken_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender's own error is the cause, where they are silent for a moment."""
    monkeypatch.setattr(module, "_MOMENT_S", 0.1)
    silent: Future[None] = Future()
    with pytest.raises(RuntimeError, match=r"^nobody came$"):
        try:
            raise RuntimeError("nobody came")
        except RuntimeError:
            module._raise_what_they_say(silent)
            raise
    silent.set_exception(GroupError("rollout[0].init: no memory"))
    with pytest.raises(GroupError, match="no memory"):
        module._raise_what_they_say(silent)


def test_what_ray_says_of_deaths_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its listener does, which prints what the driver is told."""
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)
    _keep_messages(tmp_path)
    said = "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot ..."
    screen = io.StringIO()
    with redirect_stdout(screen):
        ray_worker.print_to_stdstream({"lines": [said], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert screen.getvalue() == ""
    assert (tmp_path / "driver.log").read_text() == f"Ray: {said}\n"
