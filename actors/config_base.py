"""What every section of the configuration is made of, and how a user's mistake is told."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

from actors.config_nodes import Environment, NodeLabels, NodeResources

Seconds = Annotated[float, Field(ge=0.1, le=1e9)]
"""A deadline: below a tenth of a second even what is ready would be late; 1e9 are 30 years."""


class UserError(Exception):
    """A mistake of the user's: one line per problem. The command line prints the lines and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        # Raised in an actor, it reaches the driver by pickle: one problem must not become all of them.
        return UserError, self.problems


class Unused(ValueError):
    """A setting has no effect beside others.

    Attributes:
        name: of the setting, as the text begins.
        default: what it may be all the same, as plain values.
    """

    def __init__(self, text: str, name: str, default: object) -> None:
        super().__init__(text)
        self.name, self.default = name, default


class Config(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


def changed(config: Config, *names: str) -> dict[str, Any]:
    """Those of the fields `names` (default: all) that differ from their defaults, with their values."""
    fields = type(config).model_fields
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in names or fields}
    return {name: getattr(config, name) for name, default in defaults.items() if getattr(config, name) != default}


def refuse_unused(config: Config, *names: str, why: str, section: str = "") -> None:
    """Raise Unused for the first of `names` (default: all) that differs from its default, where it has no effect.

    One that equals its default may be given: a run's config.json, which can be run again, gives every field.
    """
    for name, value in changed(config, *names).items():  # the first is enough: it is removed, and then the next is told
        got = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
        default = _default(config, name)
        raise Unused(f"{section}{name} must be left out {why}, got {got}", f"{section}{name}", default)


def _default(config: Config, name: str) -> object:
    """A field's default as plain values."""
    default = type(config).model_fields[name].get_default(call_default_factory=True)
    return to_jsonable_python(default)


class PlacedConfig(Config):
    """Which nodes the processes of a group may live on, and with what environment."""

    node_labels: NodeLabels = {}
    """Ray labels that a node must have; values may be Ray's expressions: {ray.io/accelerator-type: in(H100, H200)}"""
    resources: NodeResources = {}
    """Custom Ray resources that each process reserves."""
    env: Environment = {}
    """Environment variables of the processes, beside `cluster.env`: {NCCL_SOCKET_IFNAME: eth0}"""
