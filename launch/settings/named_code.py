"""Code that a configuration names: reward functions, converters and generators of rows. Looked at, never imported.

`--no-code` is for configurations of others: nothing of what they name runs. What comes with Tandem is no such code.
"""

from collections.abc import Iterator

from actors.config import UserError
from algorithms.data.sources import kind_of_source
from algorithms.rewards.built_in import BUILT_IN
from algorithms.user.static_look import defined_names, fault_unseen, own_module
from launch.config import RunConfig

_OWN = ("algorithms.tasks", "algorithms.preference_tasks", "algorithms.retrieval_tasks")
"""Modules of generators that come with Tandem."""


def names_code(source: str, field: str) -> bool:
    """Whether a source of rows is a generator that does not come with Tandem. Raises UserError as kind_of_source."""
    if kind_of_source(source, field) != "generator":
        return False
    module, _, name = source.rpartition(":")
    return module not in _OWN or name not in defined_names(own_module(module))


def is_built_in(reward: str) -> bool:
    """Whether a reward function comes with Tandem."""
    return reward in BUILT_IN


def code_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Setting and `file.py:function` or `module:function` of all code that a configuration names.

    Raises UserError for a source of rows that can be none.
    """
    data = config.data
    for field, given in (("data.train", data.train), ("data.eval", data.eval), ("data.corpus", data.corpus)):
        named = given if isinstance(given, dict) else {} if given is None else {"": given}
        for name, source in named.items():
            where = f"{field}.{name}" if name else field
            if names_code(source, where):
                yield where, source
    if data.converter:
        yield "data.converter", data.converter
    for index, function in enumerate(config.reward.functions):
        if not is_built_in(function.name):
            yield f"reward.functions.{index}.name", function.name


def check_code_is_there(config: RunConfig) -> list[str]:
    """A warning for each piece of code that is named, which has not run; raises UserError where one is not there."""
    problems, warnings = [], []
    for field, name in code_of(config):
        if problem := fault_unseen(name, BUILT_IN if field.startswith("reward.") else ()):
            problems.append(f"{field}: {problem}, got {name}")
        else:
            warnings.append(f"{field}: {name} was not imported (--no-code), so nothing is known of what it gives")
    if problems:
        raise UserError(*problems)
    return warnings


def refuse_code(config: RunConfig) -> None:
    """Raise UserError for the rows that no one can see unless code runs that the configuration names."""
    named = [(field, name) for field, name in code_of(config) if field.startswith("data.")]
    if named:
        rule = "must be left out with --no-code, as its rows cannot be shown unless it runs"
        raise UserError(*(f"{field}: {rule}, got {name}" for field, name in named))
