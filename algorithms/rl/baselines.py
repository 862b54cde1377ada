"""The table of baselines: how scores become advantages, by the name that `algorithm.advantage` gives.

Two functions make a baseline, and either may be missing. `compare` takes the scores of a prompt's samples, [N], and
gives what each is above what was to be expected, [N]. `spread` takes the rewards of one response's tokens, [L], which
sum up to what `compare` has left of the score, less the KL penalty of each token, and gives advantages, [L]. Without
it every token of a response has the same advantage, and the penalty of the whole response is subtracted before the
comparison; where there is no penalty, and nothing to whiten, the driver computes advantages without asking a rank.

A new one is a function and an entry here; docs/algorithms.md adds one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actors.config import Config
from algorithms.rl.formula import Formula


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How a score becomes the advantages of tokens."""

    compare: Formula | None = None
    """(scores of a group [N]) -> [N]. None: scores are not compared, and one sample of a prompt is enough."""
    spread: Formula | None = None
    """(rewards [L], action_mask [L]) -> advantages [L]; with `critic`, (rewards, values, action_mask) -> (advantages,
    returns). None: one number per response."""
    critic: bool = False
    """Whether advantages are against the values of a critic, which learns the returns."""
    whitened: bool | str = False
    """Whether advantages then get mean 0 and variance 1 over the step's tokens, or the setting that says so."""

    @property
    def by_token(self) -> bool:
        """Whether tokens of one response have different advantages; else they share one number."""
        return self.spread is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """Settings that its functions read."""
        return tuple(name for formula in (self.compare, self.spread) if formula for name in formula.reads)

    @property
    def requires(self) -> tuple[str, ...]:
        """Those of `reads` that must be given."""
        return tuple(name for formula in (self.compare, self.spread) if formula for name in formula.requires)

    def whitens(self, config: Config) -> bool:
        """Whether advantages are whitened with these settings."""
        return getattr(config, self.whitened) if isinstance(self.whitened, str) else self.whitened


_TO_GO = Formula("algorithms.rl.advantages:rewards_to_go")
BASELINES = {
    "group": Baseline(compare=Formula("algorithms.rl.advantages:group_relative", reads=("normalize_std",))),
    "leave_one_out": Baseline(compare=Formula("algorithms.rl.advantages:leave_one_out")),
    "reinforce_pp": Baseline(spread=_TO_GO, whitened=True),
    "reinforce_pp_baseline": Baseline(
        compare=Formula("algorithms.rl.advantages:centred"), spread=_TO_GO, whitened=True
    ),
    "gae": Baseline(
        spread=Formula("algorithms.rl.advantages:gae", reads=("gamma", "gae_lambda")),
        critic=True,
        whitened="whiten_advantages",
    ),
}
"""Name -> baseline. PPO has gae, the only one with a critic."""

WITHOUT_CRITIC = {name: baseline for name, baseline in BASELINES.items() if not baseline.critic}
"""Those among which GRPO's family chooses."""

# Made of the table, so that the two cannot differ; a type checker cannot follow it there, and reads any text.
if TYPE_CHECKING:
    BaselineName = str
else:
    BaselineName = Literal[tuple(WITHOUT_CRITIC)]
