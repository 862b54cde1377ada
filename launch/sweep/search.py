"""What says which point of its space a sweep tries next; what needs Ray Tune is in `tuned.py`, which takes seconds."""

from typing import Protocol

from launch.sweep.space import Point


class Search(Protocol):
    """What says which point is tried next."""

    def point(self, number: int) -> Point | None:
        """That of a trial, numbered from 1; None when there is no other."""

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """A trial has ended with this value, or with none."""


class KnownPoints:
    """Points of a grid, or drawn at random, all of which are known before the first trial."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points

    def point(self, number: int) -> Point | None:
        """That of a trial, numbered from 1; None when there is no other."""
        return self.points[number - 1] if number <= len(self.points) else None

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """No value changes what is tried."""
