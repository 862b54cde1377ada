"""The table of surrogates: the term of the policy's loss that holds the advantages, by the name in `algorithm.loss`.

A surrogate's function gets vectors over the tokens of a micro-batch, [T] (policy_logprobs with gradient, old_logprobs,
advantages, mask), and by keyword the settings that it reads; it returns the loss of each token, 0 outside `mask`, and
the tokens whose gradient a clip cuts off, bool [T]. Importance correction, KL penalty, entropy and aggregation come
after it, in `policy_loss`.

A new one is a function and an entry here; docs/algorithms.md adds one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from algorithms.rl.formula import Formula


@dataclass(frozen=True, slots=True)
class Surrogate(Formula):
    """A surrogate's function, and what is peculiar to it."""

    by_sequence: bool = False
    """Whether a sequence has one ratio for all its tokens. The function then gets sequence_ids too, int64 [T], and the
    loss must be aggregated by sequence: a sum over tokens would count the ratio as often as the sequence has tokens."""
    bounds: tuple[str, ...] = ()
    """Those of `reads` that bound the ratio around 1: without effect in an update in which it is 1 everywhere."""


_CLIP = ("clip_low", "clip_high")
SURROGATES = {
    "clip": Surrogate(
        "algorithms.rl.losses:clipped_policy_loss", reads=(*_CLIP, "dual_clip"), bounds=(*_CLIP, "dual_clip")
    ),
    "gspo": Surrogate("algorithms.rl.losses:gspo_policy_loss", reads=_CLIP, bounds=_CLIP, by_sequence=True),
    "cispo": Surrogate(
        "algorithms.rl.losses:cispo_policy_loss", reads=("cispo_max_ratio",), requires=("cispo_max_ratio",)
    ),
    "sapo": Surrogate("algorithms.rl.losses:sapo_policy_loss", reads=("sapo_temperatures",)),
}
"""Name -> surrogate. PPO has the first one."""

RATIO_BOUNDS = tuple(dict.fromkeys(name for surrogate in SURROGATES.values() for name in surrogate.bounds))
"""All settings that bound a ratio around 1."""

# Made of the table, so that the two cannot differ; a type checker cannot follow it there, and reads any text.
if TYPE_CHECKING:
    SurrogateName = str
else:
    SurrogateName = Literal[tuple(SURROGATES)]
