"""Which of a step's responses samples.jsonl and tokens.jsonl get, and what they tell of each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import ObjectRef

from actors.episodes import Episode, Place, TokenFields
from actors.rollout.types import RolloutInfo
from algorithms.loop import spread_over
from algorithms.rl.metrics import ReportedAdvantages
from algorithms.rl.responses import noted_reads, report_ends, responses_of
from algorithms.rollouts.groups import ScoredGroup

Row = dict[str, Any]
MOST_TOKENS = 4096
"""Tokens of a response that tokens.jsonl gets."""
_DIGITS = 4
"""Decimal places of a logprob there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Places of the responses that are reported; none is twice in a list."""

    spread: list[Place]
    """From the best to the worst of the step."""
    others: list[Place]
    """Those of whole groups that are not among them, group by group."""
    tokens: list[Place]
    """Those of both whose tokens are told."""

    @property
    def written(self) -> list[Place]:
        """All of them, in the order of samples.jsonl."""
        return [*self.spread, *self.others]


@dataclass(slots=True, kw_only=True)
class StepRows:
    """What a step writes."""

    spread: list[Row] = field(default_factory=list)
    """Rows of samples.jsonl from the best to the worst response."""
    others: list[Row] = field(default_factory=list)
    """Its rows of those that complete whole groups."""
    tokens: list[Row] = field(default_factory=list)
    """Rows of tokens.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """How much of each step is reported."""

    samples: int = 8
    """Responses, evenly spaced between the best and the worst."""
    groups: int = 1
    """Prompts, all of whose responses are."""
    tokens: int = 1
    """Responses whose tokens are told."""
    texts: Callable[[Sequence[int]], list[str]] | None = None
    """The text of each token; None: no tokens are told."""

    def choose(self, groups: Sequence[ScoredGroup]) -> Chosen:
        """Which responses to these prompts are reported."""
        spread = best_to_worst(groups, self.samples)
        whole = most_different(groups, self.groups)
        taken = set(spread)
        others = [(number, index) for number in whole for index in range(len(groups[number].infos))]
        others = [place for place in others if place not in taken]
        tokens = _token_places(groups, spread, whole)[: self.tokens] if self.texts else []
        return Chosen(spread=spread, others=others, tokens=tokens)

    def rows(
        self,
        groups: Sequence[ScoredGroup],
        advantages: ReportedAdvantages,
        note: Callable[[str], None],
        reads: Sequence[ObjectRef[TokenFields]] = (),
    ) -> StepRows:
        """What the files get of a step; less, with a note, where responses cannot be read.

        `reads` are what the policy has read of those whose tokens are told, as far as it has learned from them.
        """
        chosen, until = self.choose(groups), report_ends()
        # Each group is fetched once, however many of its responses are shown.
        numbers = dict.fromkeys(number for number, _ in chosen.written)
        rollouts = {number: responses_of(groups[number], note, until) for number in numbers}

        def told(places: list[Place]) -> list[Row]:
            return [
                _row(groups[number], (number, index), rollouts[number][index], advantages.get((number, index)))
                for number, index in places
                if rollouts[number]
            ]

        found = StepRows(spread=told(chosen.spread), others=told(chosen.others))
        read = noted_reads(reads, until)
        for number, index in chosen.tokens:
            if self.texts and rollouts[number]:
                own = {"group": number, "sample": index}
                columns = token_columns(rollouts[number][index], self.texts, read.get((number, index)))
                found.tokens.append(own | columns)
        return found


def best_to_worst(groups: Sequence[ScoredGroup], count: int) -> list[Place]:
    """(number of the group, of the response) of `count` responses, evenly spaced between the best and the worst, so
    that wrong ones are there where there are any; of equal ones, those of different prompts come first."""
    order = sorted(
        ((number, index) for number, group in enumerate(groups) for index in range(len(group.infos))),
        key=lambda place: (-groups[place[0]].scores[place[1]].reward, place[1], place[0]),
    )
    return spread_over(order, count)


def most_different(groups: Sequence[ScoredGroup], count: int) -> list[int]:
    """Numbers of the `count` groups whose rewards deviate most from their mean, of equal ones the first; fewer where
    there are not so many with several responses, as a single one is no group to look at."""
    several = [number for number, group in enumerate(groups) if len(group.infos) > 1]
    return sorted(several, key=lambda number: (-_deviation(groups[number].rewards), number))[:count]


def _deviation(rewards: np.ndarray) -> float:
    if rewards.min() == rewards.max():  # of equal ones, rounding makes a mean that none of them is
        return 0.0
    # In one order, so that groups of the same rewards are equal whatever the order of their responses.
    found = float(np.std(np.sort(rewards)))
    return found if math.isfinite(found) else 0.0


def _token_places(groups: Sequence[ScoredGroup], spread: list[Place], whole: list[int]) -> list[Place]:
    """All that are reported, in the order in which their tokens are asked for: the best and the worst of each whole
    group, what else these have, and the others from the best to the worst."""
    ranked = [_ranked(groups[number], number) for number in whole]
    ends = [place for places in ranked for place in (places[0], places[-1])]
    rest = [place for places in ranked for place in places[1:-1]]
    return [*dict.fromkeys([*ends, *rest, *spread])]


def _ranked(group: ScoredGroup, number: int) -> list[Place]:
    """The places of a group, from the best to the worst response."""
    rewards = group.rewards
    return [(number, index) for index in sorted(range(len(rewards)), key=lambda index: (-rewards[index], index))]


_ELSEWHERE = {"step", "turns", "turn_rewards"}
"""Names of a row that the tracker adds, or that some rows have."""


def _row(group: ScoredGroup, place: Place, rollout: Episode, advantage: float | None) -> Row:
    """A row of samples.jsonl, with the columns of the data row."""
    number, index = place
    own: Row = {
        "group": number,
        "sample": index,
        "row": group.prompt.index,
        "prompt": group.prompt.text,
        "completion": rollout.text,
        "reward": group.scores[index].reward,
        "rewards": dict(group.scores[index].parts),
        "advantage": advantage,
        "length": group.infos[index].sampled_tokens,
        "version": group.infos[index].oldest_version,
        "status": rollout.status,
    } | _turns(group.infos[index])
    # A column with the name of one of these goes by another one.
    taken = own.keys() | _ELSEWHERE
    return own | {f"row.{name}" if name in taken else name: value for name, value in _columns(group).items()}


def _turns(info: RolloutInfo) -> Row:
    """What a row tells of turns: nothing of a single one without a reward."""
    several: Row = {"turns": info.turns} if info.turns > 1 else {}
    return several | ({"turn_rewards": list(info.turn_rewards)} if info.turn_rewards else {})


def _columns(group: ScoredGroup) -> Row:
    """Those of the data row, without a prompt that is the same text."""
    return {name: value for name, value in group.prompt.row.items() if name != "prompt" or value != group.prompt.text}


def token_columns(
    episode: Episode,
    texts: Callable[[Sequence[int]], list[str]],
    read: Mapping[str, NDArray[np.float32]] | None = None,
) -> Row:
    """What tokens.jsonl tells of an episode behind its prompt, a list with a value per token each.

    Args:
        episode: of any number of turns.
        texts: the text of each token.
        read: policy_logprobs and entropies of all tokens, [L], where the policy has learned from them.

    Returns:
        pieces: their texts; sampled: whether the policy chose them; logprobs and versions: of the sampler; entropy and
        ratio: the policy's, and how much likelier it makes the token than the sampler did, only with `read`; all four
        None where the token was given between turns; left_out: how many come behind the last one, only where there are
        any.
    """
    start = len(episode.prompt_token_ids)
    kept = slice(start, start + MOST_TOKENS)
    sampled = episode.action_mask[kept].tolist()
    logprobs = episode.at_sampled(lambda turn: turn.rollout_logprobs, 0)[kept].astype(np.float64)

    def rounded(values: NDArray[np.floating[Any]]) -> list[float | None]:
        return [round(value, _DIGITS) if own else None for value, own in zip(values.tolist(), sampled, strict=True)]

    versions = episode.versions[kept].tolist()
    found: Row = {
        "pieces": texts(episode.token_ids[kept].tolist()),
        "sampled": sampled,
        "logprobs": rounded(logprobs),
        "versions": [int(value) if own else None for value, own in zip(versions, sampled, strict=True)],
    }
    if read is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite becomes null
            ratio = np.exp(read["policy_logprobs"][kept] - logprobs)
        found |= {"entropy": rounded(read["entropies"][kept]), "ratio": rounded(ratio)}
    left_out = episode.tokens - start - len(sampled)
    return found | ({"left_out": left_out} if left_out else {})
