"""A console of rich that lets no control character through but its own."""

import sys
from collections.abc import Iterable
from typing import TextIO, TypedDict, Unpack

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from launch.screen.shown import visible
from launch.screen.stdout import behind


class ConsoleOptionsGiven(TypedDict, total=False):
    """Options of rich's console that are used here."""

    file: TextIO
    soft_wrap: bool
    highlight: bool
    emoji: bool
    width: int | None


class VisibleConsole(Console):
    """As rich's, for text of data, models and names: what would act on the terminal is shown as an escape.

    rich keeps its own control codes apart from text until it writes them.
    """

    def __init__(self, **options: Unpack[ConsoleOptionsGiven]) -> None:
        """`options` are rich's; without `file` it prints to standard output as it is now."""
        # Behind `VisibleOutput`, which would show rich's own codes as text.
        super().__init__(**{"file": behind(sys.stdout), **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, lines=True), segment.style)
