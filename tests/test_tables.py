"""The tables of baselines and surrogates against the functions that they name, the settings and the documentation."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pytest

from algorithms.config_rl import GRPOConfig, PPOConfig, RLConfig
from algorithms.rl.advantages import gae
from algorithms.rl.baselines import BASELINES, WITHOUT_CRITIC, Baseline
from algorithms.rl.formula import Formula, check_choice
from algorithms.rl.losses import clipped_policy_loss
from algorithms.rl.surrogates import RATIO_BOUNDS, SURROGATES

ROOT = Path(__file__).resolve().parent.parent
TOKENS = ["policy_logprobs", "old_logprobs", "advantages", "mask"]
FORMULAS: dict[str, tuple[Formula, list[str]]] = {
    **{
        f"{name}": (entry, TOKENS + (["sequence_ids"] if entry.by_sequence else []))
        for name, entry in SURROGATES.items()
    },
    **{f"{name}, compare": (entry.compare, ["rewards"]) for name, entry in BASELINES.items() if entry.compare},
    **{
        f"{name}, spread": (entry.spread, ["rewards", "values", "mask"] if entry.critic else ["rewards", "mask"])
        for name, entry in BASELINES.items()
        if entry.spread
    },
}
"""Every function that a table names, and what it is given by position."""


def parameters(function: Callable[..., Any], kind: Any) -> list[str]:
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind == kind]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_function_takes_what_it_is_given(name: str) -> None:
    """By position what the table's docstring says; by name the settings that it reads, and no other without default."""
    formula, given = FORMULAS[name]
    function = resolve_name(formula.place)
    assert parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD) == given
    named = parameters(function, inspect.Parameter.KEYWORD_ONLY)
    needed = {each for each in named if inspect.signature(function).parameters[each].default is inspect.Parameter.empty}
    assert needed <= {*formula.reads} <= {*named}
    assert {*formula.requires} <= {*formula.reads}


def test_the_choices_are_the_tables() -> None:
    assert get_args(GRPOConfig.model_fields["loss"].annotation) == tuple(SURROGATES)
    assert get_args(GRPOConfig.model_fields["advantage"].annotation) == tuple(WITHOUT_CRITIC)
    assert {*BASELINES} - {*WITHOUT_CRITIC} == {"gae"}


def test_what_is_read_are_settings_of_whoever_may_choose_it() -> None:
    for entry in (*SURROGATES.values(), *WITHOUT_CRITIC.values()):
        assert {*entry.reads} <= {*GRPOConfig.model_fields}
    ppo = PPOConfig(name="ppo")
    assert ppo.baseline is BASELINES["gae"] and ppo.surrogate is SURROGATES["clip"]
    for entry in (ppo.baseline, ppo.surrogate):
        assert {*entry.reads} <= {*PPOConfig.model_fields}
    for baseline in BASELINES.values():
        assert baseline.spread or not baseline.critic, "what a critic learns are returns of tokens"
    for surrogate in SURROGATES.values():
        assert {*surrogate.bounds} <= {*surrogate.reads}
    assert RATIO_BOUNDS == ("clip_low", "clip_high", "dual_clip")


def test_functions_are_given_the_settings_that_they_read() -> None:
    config = PPOConfig(name="ppo", clip_low=0.1, clip_high=0.3, dual_clip=4, gamma=0.9, gae_lambda=0.8)
    surrogate: Any = config.surrogate.of(config)
    assert surrogate.func is clipped_policy_loss
    assert surrogate.keywords == {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 4}
    spread: Any = BASELINES["gae"].spread
    found = spread.of(config)
    assert (found.func, found.keywords) == (gae, {"gamma": 0.9, "gae_lambda": 0.8})


def test_who_chooses_is_asked_and_not_its_class() -> None:
    config = GRPOConfig(name="grpo", advantage="leave_one_out", loss="sapo")
    assert config.baseline is BASELINES["leave_one_out"] and config.surrogate is SURROGATES["sapo"]
    with pytest.raises(TypeError, match="abstract"):
        RLConfig()  # type: ignore[abstract]


def test_a_setting_may_say_whether_advantages_are_whitened() -> None:
    for whiten in (True, False):
        config = PPOConfig(name="ppo", whiten_advantages=whiten)
        assert config.baseline.whitens(config) is whiten
    config = GRPOConfig(name="grpo")
    assert [name for name, entry in WITHOUT_CRITIC.items() if entry.whitens(config)] == [
        "reinforce_pp",
        "reinforce_pp_baseline",
    ]


@pytest.mark.parametrize("setting", ["clip_low", "clip_high", "dual_clip", "cispo_max_ratio", "sapo_temperatures"])
def test_settings_are_refused_with_every_surrogate_that_does_not_read_them(setting: str) -> None:
    value = {"sapo_temperatures": (2.0, 3.0), "dual_clip": 4.0}.get(setting, 0.5)
    for name, surrogate in SURROGATES.items():
        settings: dict[str, Any] = {"name": "grpo", "loss": name, "cispo_max_ratio": 5.0 if name == "cispo" else None}
        settings |= {"aggregation": "sequence" if surrogate.by_sequence else "token", setting: value}
        if setting in surrogate.reads:
            assert getattr(GRPOConfig.model_validate(settings), setting) == value
        else:
            with pytest.raises(ValueError, match=f"{setting} must be left out with loss {name}, which does not read"):
                GRPOConfig.model_validate(settings)


def test_what_either_function_of_a_baseline_reads_and_requires_counts() -> None:
    """A table of made-up entries, of settings that there are."""
    table = {
        "both": Baseline(
            compare=Formula("a:b", reads=("normalize_std",)),
            spread=Formula("a:c", reads=("dual_clip",), requires=("dual_clip",)),
        ),
        "group": Baseline(),
    }
    assert (table["both"].reads, table["both"].requires) == (("normalize_std", "dual_clip"), ("dual_clip",))
    config = GRPOConfig(name="grpo", dual_clip=3)
    with pytest.raises(ValueError, match="dual_clip must be left out with advantage group, which does not read it"):
        check_choice(config, "advantage", table)
    both = GRPOConfig(name="grpo").model_copy(update={"advantage": "both"})
    with pytest.raises(ValueError, match="dual_clip: required for advantage both, got nothing"):
        check_choice(both, "advantage", table)
    check_choice(config.model_copy(update={"advantage": "both", "normalize_std": False}), "advantage", table)


def test_the_documentation_lists_every_entry() -> None:
    text = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8").partition("## GRPO and its family")[2]
    for head, table in (
        ("| `advantage` | A_i | |", WITHOUT_CRITIC),
        ("| `loss` | surrogate of a token | |", SURROGATES),
    ):
        rows = text.partition(head)[2].partition("\n\n")[0]
        assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == list(table)
