"""When policy and engines meet for weight transfer: once, and again when a process of either is another."""

from types import SimpleNamespace
from typing import Any

from actors.config_rollout import RolloutConfig, TransferConfig
from launch.run.connection import Connection


class Engines:
    """A group of engines."""

    def __init__(self, handles: list[str]) -> None:
        self.handles, self.generations = handles, [0] * len(handles)

    def __len__(self) -> int:
        return len(self.handles)

    @property
    def version(self) -> int:
        return sum(self.generations)


def test_ranks_get_the_handles_of_now_when_a_process_was_replaced() -> None:
    connected: list[Any] = []
    policy = SimpleNamespace(
        version=0, call=lambda method, *given: connected.append((method.__name__, given[0], given[-1]))
    )
    rollout, critic = Engines(["first", "other"]), SimpleNamespace(version=0)
    config: Any = SimpleNamespace(rollout=RolloutConfig(transfer=TransferConfig(backend="gloo")))
    roster: Any = {"policy": policy, "critic": critic, "rollout": rollout}
    connection = Connection(config, roster)
    connection.ensure()
    critic.version += 1
    connection.ensure()
    assert connected == [("connect", ["first", "other"], [0, 1])], "a critic has no part in it"
    rollout.generations[0], rollout.handles[0] = 1, "second"
    connection.ensure()
    connection.ensure()
    policy.version += 2
    connection.ensure()
    assert connected[1:] == [("connect", ["second", "other"], [0, 1])] * 2


def test_other_engines_are_met_anew_and_all_after_a_failure() -> None:
    """Those that take part, by their numbers; what becomes of another does not matter. A holder is met once."""
    connected: list[Any] = []
    policy = SimpleNamespace(version=0, call=lambda method, *given: connected.append((method.__name__, given[-1])))
    rollout = Engines(["a", "b", "c"])
    config: Any = SimpleNamespace(rollout=RolloutConfig(transfer=TransferConfig(backend="gloo")))
    roster: Any = {"policy": policy, "rollout": rollout}
    connection = Connection(config, roster)
    for engines in ([0, 1, 2], [0, 2], [0, 2], [0, 1, 2]):
        connection.ensure(engines)
    assert [numbers for _, numbers in connected] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    connection.ensure([0, 2])
    rollout.generations[1] += 1
    connection.ensure([0, 2])
    assert len(connected) == 4
    connection.part()
    connection.ensure([0, 2])
    assert len(connected) == 5
    roster["holder"] = SimpleNamespace(version=0, handles=["holder"])
    connection = Connection(config, roster)
    for engines in ([0], [1, 2]):
        connection.ensure(engines)
    assert [name for name, _ in connected[5:]] == ["connect_holder"]


def test_a_meeting_that_failed_counts_for_nothing() -> None:
    answers: list[Any] = [ValueError("engines are silent"), None]

    def call(*_: Any) -> None:
        if error := answers.pop(0):
            raise error

    roster: Any = {"policy": SimpleNamespace(version=0, call=call), "rollout": Engines([])}
    config: Any = SimpleNamespace(rollout=RolloutConfig(transfer=TransferConfig(backend="gloo")))
    connection = Connection(config, roster)
    for left in (1, 0, 0):
        try:
            connection.ensure()
        except ValueError:
            assert left == 1
        assert len(answers) == left
