"""The tables of other projects' names, read: what a name is called here, and what to say where there is nothing."""

import re
from dataclasses import dataclass
from functools import cache

from launch.peers import axolotl, openrlhf, trl, values, verl

PEERS = {
    "TRL, transformers and PEFT": trl.TABLE,
    "axolotl": axolotl.TABLE,
    "OpenRLHF": openrlhf.TABLE,
    "verl": verl.TABLE,
}
"""Peer -> its table, in the order in which they are asked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a peer's name is here."""

    names: tuple[str, ...]
    ours: tuple[str, ...]
    """Our settings; empty where there is none."""
    note: str
    """How to convert, or what takes the place of a setting that there is not."""


def entries(table: str) -> list[Entry]:
    """The lines of one table."""
    found = []
    for line in table.strip().splitlines():
        names, _, rest = line.partition(" = ")
        ours, _, note = rest.partition(" | ")
        found.append(Entry(_split(names), () if ours == "-" else _split(ours), note))
    return found


@cache
def by_name() -> dict[str, Entry]:
    """Every name of every peer; the first peer's, where several have it."""
    found: dict[str, Entry] = {}
    for table in PEERS.values():
        for entry in entries(table):
            for name in entry.names:
                found.setdefault(name, entry)
    return found


@cache
def by_ending() -> dict[str, Entry]:
    """The endings of dotted names: rollout.n and n of actor_rollout_ref.rollout.n."""
    found: dict[str, Entry] = {}
    for name, entry in by_name().items():
        parts = name.split(".")
        for start in range(1, len(parts)):  # people write less of a name than the tables have
            found.setdefault(".".join(parts[start:]), entry)
    return found


@cache
def by_value() -> dict[tuple[str, str], str]:
    """(our field, a peer's value) -> ours; `-` and a text where there is none."""
    found = {}
    for line in values.TABLE.strip().splitlines():
        field, _, rest = line.partition(": ")
        names, _, ours = rest.partition(" = ")
        for name in _split(names):
            found[field, name] = ours.replace("NAME", name)
    return found


def plain(name: str) -> str:
    """A name as the tables write it: --learning-rate, learningRate and +learning_rate are learning_rate."""
    # + and ~ are Hydra's: a setting that is added, or removed.
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("+~-"))
    return name.replace("-", "_").lower()


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))


def migrating_markdown() -> str:
    """docs/migrating.md: every name of each peer, and ours."""
    parts = [_HEAD]
    for peer, table in PEERS.items():
        parts.append(f"## {peer}\n\n| there | here | note |\n|---|---|---|")
        for entry in entries(table):
            names, ours = (", ".join(f"`{name}`" for name in part) for part in (entry.names, entry.ours))
            # chr(92): before Python 3.12 no backslash can stand in an f-string's braces.
            parts.append(f"| {names} | {ours or 'none'} | {entry.note.replace('|', chr(92) + '|')} |")
        parts.append("")
    parts.append("## Values\n\n| setting | there | here |\n|---|---|---|")
    for line in values.TABLE.strip().splitlines():
        field, _, rest = line.partition(": ")
        names, _, ours = rest.partition(" = ")
        there = ", ".join(f"`{name}`" for name in _split(names))
        none = ours.startswith("- ")
        parts.append(f"| `{field}` | {there} | {f'none: {ours[2:]}' if none else f'`{ours}`'} |")
    return "\n".join(parts) + "\n"


_HEAD = """# Coming from TRL, OpenRLHF, verl or axolotl

What their settings are called here. Made by `tandem help --migrating > docs/migrating.md` from the table that also answers
an unknown name in a configuration; `tandem help learning_rate` shows one. Three things differ for all of them: sizes of
batches are counts over all ranks, passes are bounded by tokens instead of rows (`policy.micro_batch_tokens`) and
sequences are always packed; every metric of every step is written to metrics.jsonl.
"""
