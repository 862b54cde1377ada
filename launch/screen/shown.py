"""Text of models and data as a person may see it: no control codes, measured in the cells of a terminal."""

import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len

NEWLINE = "\N{RETURN SYMBOL}"
_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need."""
_DOTS = "..."


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with escapes for what would not show, or would act on a terminal: control characters, ANSI escapes,
    bidirectional overrides, lone surrogates. Letters of any script stay as they are.

    Args:
        lines: keep line breaks and tabs; otherwise a line break is shown as a sign.

    Example: visible("a\n\x1b[2J\u7b54") is "a", the sign, "\\x1b[2J" and the letter.
    """
    text = text.replace("\r\n", "\n")  # line ends of Windows are ordinary: one sign, and no escape before it
    return "".join(character if character.isprintable() else _sign(character, lines=lines) for character in text)


def _sign(character: str, *, lines: bool) -> str:
    if character == "\n":
        return character if lines else NEWLINE
    # Of all spaces, Python calls only the plain one printable.
    if character in _JOINERS or unicodedata.category(character) == "Zs" or (lines and character == "\t"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def fitted(text: str, cells: int) -> str:
    """The text, cut to at most `cells` cells with dots at its end where it is longer; wide characters take two."""
    if cell_len(text) <= cells:
        return text
    room, end = max(0, cells - len(_DOTS)), 0
    while (width := cell_len(text[end])) <= room:  # ends within the text, which is wider than the room
        room, end = room - width, end + 1
    return f"{text[:end]}{_DOTS[: max(0, cells)]}"


def flowed(parts: Iterable[str], cells: int, *, indent: int = 2, gap: str = "  ", cut: bool = True) -> list[str]:
    """Lines of whole parts, as many in each as fit into `cells`; later lines are indented. A part that is longer than
    a line is cut with dots, or with `cut` false left as it is, which a path or a command needs."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + len(gap) + cell_len(part) <= cells:
            lines[-1] += f"{gap}{part}"
        else:
            start = " " * indent if lines else ""
            lines.append(fitted(f"{start}{part}", cells) if cut else f"{start}{part}")
    return lines


def clock(seconds: float) -> str:
    """Example: clock(83) is "1:23", clock(3723) "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
