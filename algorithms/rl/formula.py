"""What tables of baselines and surrogates are made of: functions by their place, and the settings that they read.

Settings are checked where torch is not imported, so that a mistake costs a second: a table says where a function is,
and whoever computes with it looks it up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any, Protocol

from actors.config import Config, refuse_unused


@dataclass(frozen=True, slots=True)
class Formula:
    """A pure function, and the settings that are keyword arguments of it under their own names.

    Example: Formula("algorithms.rl.advantages:group_relative", reads=("normalize_std",))
    """

    place: str
    """`module:function`."""
    reads: tuple[str, ...] = ()
    """Settings of the `algorithm` section that it reads. Where the choice is another, they are refused."""
    requires: tuple[str, ...] = ()
    """Those of `reads` that must be given, as their default is none."""

    def of(self, config: Config) -> Callable[..., Any]:
        """The function with the settings of `config`."""
        # Looked up only by who computes: the module may import torch.
        return partial(resolve_name(self.place), **{name: getattr(config, name) for name in self.reads})


class Choice(Protocol):
    """What every table says of one of its entries; see `Formula`."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Settings that it reads."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """Those of them that must be given."""
        ...


def check_choice(config: Config, field: str, table: Mapping[str, Choice]) -> None:
    """Check that the settings fit the entry of `table` that `field` names.

    Raises:
        ValueError: one that the entry requires is missing, or one that only others read differs from its default.
    """
    name = getattr(config, field)
    chosen = table[name]
    for setting in chosen.requires:
        if getattr(config, setting) is None:
            raise ValueError(f"{setting}: required for {field} {name}, got nothing")
    for setting in (each for entry in table.values() for each in entry.reads):
        if setting not in chosen.reads:
            refuse_unused(config, setting, why=f"with {field} {name}, which does not read it")
