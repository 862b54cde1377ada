"""Scored groups as arrays and back: what rollouts that run ahead keep in a checkpoint.

Everything of one kind is one array, whatever it belongs to, with counts that say where each episode, turn and span
ends: `tokens` holds the tokens of all turns, given and sampled, one after the other.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from actors.episodes import Episode, EpisodeStatus, Prompt, Turn, VersionSpan
from actors.rollout.types import RolloutInfo
from algorithms.rewards.scores import Score
from algorithms.rollouts.groups import ScoredGroup, kept

Arrays = dict[str, np.ndarray]
_STATUSES: tuple[EpisodeStatus, ...] = ("ok", "truncated", "failed")


def group_arrays(groups: Sequence[ScoredGroup], episodes: Sequence[list[Episode]]) -> Arrays:
    """Arrays that hold these groups and their episodes; prompts by set and row only."""
    flat = [episode for each in episodes for episode in each]
    turns = [turn for episode in flat for turn in episode.turns]
    scores = [score for group in groups for score in group.scores]
    labels = sorted({name for score in scores for name in score.parts})
    return {
        "rows": np.array([group.prompt.index for group in groups], dtype=np.int64),
        "sets": _text([group.prompt.of_set for group in groups]),
        "episodes": np.array([len(each) for each in episodes], dtype=np.int64),
        "turns": np.array([len(episode.turns) for episode in flat], dtype=np.int64),
        "statuses": np.array([_STATUSES.index(episode.status) for episode in flat], dtype=np.int8),
        "texts": _text([episode.text for episode in flat]),
        "given": np.array([len(turn.given_token_ids) for turn in turns], dtype=np.int64),
        "sampled": np.array([len(turn.sampled_token_ids) for turn in turns], dtype=np.int64),
        "tokens": _joined(
            [part for turn in turns for part in (turn.given_token_ids, turn.sampled_token_ids)], np.int32
        ),
        "logprobs": _joined([turn.rollout_logprobs for turn in turns], np.float32),
        "spans": np.array([len(turn.versions) for turn in turns], dtype=np.int64),
        "versions": np.array(
            [[span.version, span.start, span.end] for turn in turns for span in turn.versions], dtype=np.int64
        ).reshape(-1, 3),
        "finish_reasons": _text([turn.finish_reason for turn in turns]),
        # A turn without a reward is not one with a reward of 0.
        "turn_rewards": np.array([np.nan if turn.reward is None else turn.reward for turn in turns], dtype=np.float64),
        "labels": _text(labels),
        "rewards": np.array([score.reward for score in scores], dtype=np.float64),
        "parts": np.array(
            [[score.parts.get(name, np.nan) for name in labels] for score in scores], dtype=np.float64
        ).reshape(len(scores), len(labels)),
    }


def groups_of(arrays: Arrays, prompt_of: Callable[[str, int], Prompt]) -> list[ScoredGroup]:
    """The groups that `group_arrays` has written.

    Args:
        arrays: as they were.
        prompt_of: the prompt of a set's row.

    Raises:
        KeyError, ValueError, IndexError: these are no such arrays, or there is no such prompt.
    """
    episodes, scores = _episodes(arrays), _scores(arrays)
    found = []
    for row, of_set, (start, end) in zip(
        arrays["rows"].tolist(), _texts(arrays["sets"]), _parts(arrays["episodes"]), strict=True
    ):
        own = episodes[start:end]
        found.append(
            ScoredGroup(
                prompt=prompt_of(of_set, row),
                rollouts=kept(own),
                infos=[RolloutInfo.of(episode) for episode in own],
                scores=scores[start:end],
            )
        )
    return found


def _episodes(arrays: Arrays) -> list[Episode]:
    turns = _turns(arrays)
    kinds = [_STATUSES[each] for each in arrays["statuses"].tolist()]
    return [
        Episode(turns=turns[start:end], status=status, text=text)
        for (start, end), status, text in zip(_parts(arrays["turns"]), kinds, _texts(arrays["texts"]), strict=True)
    ]


def _turns(arrays: Arrays) -> list[Turn]:
    lengths = np.stack([arrays["given"], arrays["sampled"]], axis=1).reshape(-1)  # of each turn both, in turn
    tokens = [arrays["tokens"][start:end] for start, end in _parts(lengths)]
    logprobs = [arrays["logprobs"][start:end] for start, end in _parts(arrays["sampled"])]
    spans = [VersionSpan(version=v, start=s, end=e) for v, s, e in arrays["versions"].tolist()]
    rewards = [None if np.isnan(each) else float(each) for each in arrays["turn_rewards"]]
    reasons = _texts(arrays["finish_reasons"])
    return [
        Turn(
            given_token_ids=tokens[2 * number],
            sampled_token_ids=tokens[2 * number + 1],
            rollout_logprobs=logprobs[number],
            versions=spans[start:end],
            finish_reason=reasons[number],
            reward=rewards[number],
        )
        for number, (start, end) in enumerate(_parts(arrays["spans"]))
    ]


def _scores(arrays: Arrays) -> list[Score]:
    labels = _texts(arrays["labels"])
    return [
        # A reward that is not known yet is one that reward models have still to give.
        Score(
            reward=reward,
            parts={name: value for name, value in zip(labels, parts, strict=True) if not np.isnan(value)},
            status="abstained" if np.isnan(reward) else "ok",
        )
        for reward, parts in zip(arrays["rewards"].tolist(), arrays["parts"].tolist(), strict=True)
    ]


def _parts(lengths: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of parts with these lengths, one after the other."""
    return list(pairwise([0, *np.cumsum(lengths).tolist()]))


def _joined(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=dtype), *parts]).astype(dtype)  # of nothing alone it makes no array


def _text(values: Sequence[str]) -> NDArray[np.uint8]:
    """Texts as bytes; what is no text of Unicode (half a surrogate pair) is kept as it is."""
    # Each with its length before it, as a text may hold any character that could divide them.
    parts = [value.encode("utf-8", "surrogatepass") for value in values]
    return np.frombuffer(b"".join(len(part).to_bytes(4, "little") + part for part in parts), dtype=np.uint8)


def _texts(values: np.ndarray) -> list[str]:
    content, found, at = values.tobytes(), list[str](), 0
    while at < len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        found.append(content[at + 4 : end].decode("utf-8", "surrogatepass"))
        at = end
    return found
