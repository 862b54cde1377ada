"""A node is lost when neither its warden nor its processes nor its network answer, and not when only some do not."""

import socket
from collections.abc import Iterator

import pytest

from launch.run.silence import Knock, Silence

HEARTBEAT_S = 4.0


class Door:
    """A node's port that opens, or does not."""

    opens = False
    knocks = 0

    def __call__(self) -> "Door":
        self.knocks += 1
        return self

    def answered(self) -> bool:
        """Whether it opens now."""
        return self.opens


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def silence(door: Door) -> Silence:
    return Silence(HEARTBEAT_S, door)


def test_a_node_that_answers_nothing_is_suspect_and_then_lost(silence: Silence) -> None:
    assert silence.look(100.0, heard_at=0.0) == "heard", "it has not been asked yet"
    silence.asked(100.0)
    states = [silence.look(100.0 + seconds, heard_at=99.0) for seconds in (0, 1, 2, 3, 4, 5)]
    assert states == ["heard", "heard", "suspect", "suspect", "lost", "lost"]
    assert silence.is_lost and silence.silent_s == 4.0


def test_one_of_which_a_process_answers_is_not_lost(silence: Silence) -> None:
    silence.asked(100.0)
    assert {silence.look(100.0 + seconds, heard_at=99.0 + seconds) for seconds in range(30)} == {"heard"}
    # The silence is as long as that of whoever has been heard last.
    states = [silence.look(130.0 + seconds, heard_at=129.0) for seconds in (1, 2, 3)]
    assert states == ["suspect", "suspect", "lost"]


def test_one_that_is_only_busy_is_not_lost(silence: Silence, door: Door) -> None:
    door.opens = True
    silence.asked(100.0)
    assert {silence.look(100.0 + seconds, heard_at=0.0) for seconds in range(2, 60)} == {"suspect"}
    assert door.knocks == 58, "it is asked for anew each time: it may have gone since"
    door.opens = False
    assert silence.look(160.0, heard_at=0.0) == "lost"


def test_its_answer_ends_all_doubt(silence: Silence) -> None:
    silence.asked(100.0)
    silence.look(102.0, heard_at=0.0)
    assert not silence.answered()
    assert silence.look(104.0, heard_at=0.0) == "heard"
    silence.asked(104.0)
    silence.asked(107.0)  # the same question, sent again
    silence.look(106.0, heard_at=0.0)
    assert silence.look(108.0, heard_at=0.0) == "lost"
    assert silence.answered() and not silence.is_lost
    assert silence.look(109.0, heard_at=0.0) == "heard"


def test_who_has_not_listened_begins_anew(silence: Silence) -> None:
    silence.asked(100.0)
    silence.look(103.0, heard_at=0.0)
    silence.begin_anew(130.0)
    assert [silence.look(seconds, heard_at=0.0) for seconds in (131.0, 133.0, 134.0)] == ["heard", "suspect", "lost"]
    silence.answered()
    silence.begin_anew(140.0)
    assert silence.look(150.0, heard_at=0.0) == "heard", "nothing is asked"


def test_times_that_are_none_condemn_nobody(silence: Silence) -> None:
    silence.asked(float("nan"))
    assert silence.look(100.0, heard_at=float("nan")) == "heard"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_that_listens_answers_though_nobody_takes_the_connection(listening: socket.socket) -> None:
    address, port = listening.getsockname()
    knock = Knock(address, port)
    assert knock.answered()
    listening.close()
    assert not Knock(address, port).answered(), "refused"
    assert not Knock("192.0.2.1", 9).answered(), "nobody is there (RFC 5737)"
