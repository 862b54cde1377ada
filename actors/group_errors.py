"""How a call to a group of actors fails. Who has to know what kind it is asks for the class, and nobody reads texts."""

from collections.abc import Sequence


class GroupError(RuntimeError):
    """An actor of a group failed, died or missed a deadline; the message names the group, rank and method."""


class RankLost(GroupError):
    """The process of a rank is gone, and what it had with it."""

    def __init__(self, message: str, group: str = "", rank: int = 0) -> None:
        super().__init__(message)
        self.group = group
        self.rank = rank

    def __reduce__(self) -> tuple[type["RankLost"], tuple[str, str, int]]:
        # Errors of a group travel as causes of those of another.
        return type(self), (str(self), self.group, self.rank)


class RankLate(GroupError):
    """Ranks have missed a deadline: they may work, wait for another one, or stand still."""

    def __init__(self, message: str, group: str = "", ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.group = group
        self.ranks = tuple(ranks)

    def __reduce__(self) -> tuple[type["RankLate"], tuple[str, str, tuple[int, ...]]]:
        return type(self), (str(self), self.group, self.ranks)


class DataLost(GroupError):
    """What was to be read is gone: an answer, or an argument, that was lost with its node or the process it was of."""
