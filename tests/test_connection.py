"""When policy and engines meet for weight transfer: once, and again when a process of either is another."""

from types import SimpleNamespace
from typing import Any

from actors.config_rollout import RolloutConfig, TransferConfig
from launch.run.connection import Connection


def test_ranks_get_the_handles_of_now_when_a_process_was_replaced() -> None:
    connected: list[Any] = []
    policy = SimpleNamespace(version=0, call=lambda method, handles, *_: connected.append((method.__name__, handles)))
    rollout, critic = SimpleNamespace(version=0, handles=["first"]), SimpleNamespace(version=0)
    config: Any = SimpleNamespace(rollout=RolloutConfig(transfer=TransferConfig(backend="gloo")))
    roster: Any = {"policy": policy, "critic": critic, "rollout": rollout}
    connection = Connection(config, roster)
    connection.ensure()
    critic.version += 1
    connection.ensure()
    assert connected == [("connect", ["first"])], "a critic has no part in it"
    rollout.version, rollout.handles = 1, ["second"]
    connection.ensure()
    connection.ensure()
    policy.version += 2
    connection.ensure()
    assert connected[1:] == [("connect", ["second"])] * 2


def test_a_meeting_that_failed_counts_for_nothing() -> None:
    answers: list[Any] = [ValueError("engines are silent"), None]

    def call(*_: Any) -> None:
        if error := answers.pop(0):
            raise error

    roster: Any = {"policy": SimpleNamespace(version=0, call=call), "rollout": SimpleNamespace(version=0, handles=[])}
    config: Any = SimpleNamespace(rollout=RolloutConfig(transfer=TransferConfig(backend="gloo")))
    connection = Connection(config, roster)
    for left in (1, 0, 0):
        try:
            connection.ensure()
        except ValueError:
            assert left == 1
        assert len(answers) == left
