"""Groups as arrays and back, scored ones and those on their way: what rollouts that run ahead keep in a checkpoint.

Everything of one kind is one array, whatever it belongs to, with counts that say where each episode, turn and span
ends: `tokens` holds the tokens of all turns, given and sampled, one after the other.
"""

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from actors.episodes import Episode, EpisodeStatus, Prompt, Turn, VersionSpan
from actors.rollout.types import Begun, Finish, RolloutInfo
from algorithms.rewards.scores import Score
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup, kept
from algorithms.rollouts.tail import Place

Arrays = dict[str, np.ndarray]
_STATUSES: tuple[EpisodeStatus, ...] = ("ok", "truncated", "failed")
_PARTIAL = "partial_"
"""Names of arrays of groups on their way begin so, beside those of scored ones in one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialGroup:
    """A group on its way: what each of its samples has so far; without any, nothing is known of them."""

    prompt: Prompt
    begun: tuple[Begun, ...] = ()


def group_arrays(groups: Sequence[ScoredGroup], episodes: Sequence[list[Episode]]) -> Arrays:
    """Arrays that hold these groups and their episodes; prompts by set and row only. Of shaped ones (see `ShapedGroup`)
    also what they are trained on, as the running mean that it was made with has moved on."""
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
        # Where rewards see special tokens (reward.keep_special_tokens): an empty text is not none.
        "is_marked": np.array([episode.marked_text is not None for episode in flat], dtype=np.uint8),
        "marked": _text([episode.marked_text or "" for episode in flat]),
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
        "is_shaped": np.array([isinstance(group, ShapedGroup) for group in groups], dtype=np.uint8),
        "shaped": _joined([group.shaped for group in groups if isinstance(group, ShapedGroup)], np.float64),
        "counted": _joined([group.counted for group in groups if isinstance(group, ShapedGroup)], np.uint8),
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
    found, shapes = [], _shapes(arrays)
    for row, of_set, (start, end), shape in zip(
        arrays["rows"].tolist(), _texts(arrays["sets"]), _parts(arrays["episodes"]), shapes, strict=True
    ):
        own = episodes[start:end]
        group = ScoredGroup(
            prompt=prompt_of(of_set, row),
            rollouts=kept(own),
            infos=[RolloutInfo.of(episode) for episode in own],
            scores=scores[start:end],
        )
        found.append(group if shape is None else group.with_shape(*shape))
    return found


def _shapes(arrays: Arrays) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """What each group is trained on, float64 [N], and whether the loss counts each response, bool [N]."""
    if "is_shaped" not in arrays:  # written when nobody kept it
        return [None] * len(arrays["rows"])
    shaped, counted, lengths = arrays["shaped"], arrays["counted"].astype(bool), arrays["episodes"]
    chosen = arrays["is_shaped"].astype(bool)
    if not (len(chosen) == len(lengths) and len(shaped) == len(counted) == lengths[chosen].sum()):
        raise ValueError(f"{len(shaped)} scores and {len(counted)} marks are not those of the groups that are shaped")
    if not np.isfinite(shaped).all():
        raise ValueError("scores that groups are trained on must be finite")
    parts = iter(_parts(lengths[chosen]))
    places = [next(parts) if each else None for each in chosen.tolist()]
    return [each and (shaped[each[0] : each[1]], counted[each[0] : each[1]]) for each in places]


def places_of(arrays: Arrays) -> list[tuple[str, int]]:
    """Name of the set, and row, of every group that `group_arrays` and `partial_arrays` have written."""
    return [
        place
        for kind in ("", _PARTIAL)
        for place in zip(_texts(arrays[f"{kind}sets"]), arrays[f"{kind}rows"].tolist(), strict=True)
    ]


def partial_arrays(groups: Sequence[PartialGroup]) -> Arrays:
    """Arrays that hold these groups; prompts by set and row only."""
    samples = [sample for group in groups for sample in group.begun]
    found = {
        "rows": np.array([group.prompt.index for group in groups], dtype=np.int64),
        "sets": _text([group.prompt.of_set for group in groups]),
        "samples": np.array([len(group.begun) for group in groups], dtype=np.int64),
        "lengths": np.array([len(sample.token_ids) for sample in samples], dtype=np.int64),
        "tokens": _joined([sample.token_ids for sample in samples], np.int32),
        "logprobs": _joined([sample.logprobs for sample in samples], np.float32),
        "spans": np.array([len(sample.versions) for sample in samples], dtype=np.int64),
        "versions": np.array(
            [[span.version, span.start, span.end] for sample in samples for span in sample.versions], dtype=np.int64
        ).reshape(-1, 3),
        # As JSON: none is not "", nor a token's number its digits. Half a surrogate pair is escaped, as it is.
        "ends": _text([json.dumps([each.finish, each.ended_by, each.text, each.error]) for each in samples]),
    }
    return {_PARTIAL + name: array for name, array in found.items()}


def partial_groups_of(arrays: Arrays, prompt_of: Callable[[str, int], Prompt]) -> list[PartialGroup]:
    """The groups that `partial_arrays` has written; none where no array is of such groups.

    Args:
        arrays: as they were; others may be among them.
        prompt_of: the prompt of a set's row.

    Raises:
        KeyError, ValueError, IndexError: these are no such arrays, or there is no such prompt.
    """
    own = {name.removeprefix(_PARTIAL): array for name, array in arrays.items() if name.startswith(_PARTIAL)}
    if not own:  # written when groups on their way started anew
        return []
    samples = _begun(own)
    rows, sets = own["rows"].tolist(), _texts(own["sets"])
    return [
        PartialGroup(prompt=prompt_of(of_set, row), begun=tuple(samples[start:end]))
        for row, of_set, (start, end) in zip(rows, sets, _parts_of(samples, own["samples"]), strict=True)
    ]


def length_arrays(lengths: Mapping[Place, float]) -> Arrays:
    """Arrays that hold `Tail.lengths`, beside those of groups in one file."""
    return {
        "length_sets": _text([of_set for of_set, _ in lengths]),
        "length_rows": np.array([row for _, row in lengths], dtype=np.int64),
        "length_tokens": np.array(list(lengths.values()), dtype=np.float64),
    }


def lengths_of(arrays: Arrays) -> dict[Place, float]:
    """The lengths that `length_arrays` has written; none where no array is of such. Raises ValueError where they are no
    lengths."""
    if "length_rows" not in arrays:  # written when nobody kept them
        return {}
    rows, tokens = arrays["length_rows"].tolist(), arrays["length_tokens"]
    if not (np.isfinite(tokens) & (tokens >= 0)).all():
        raise ValueError("lengths must be finite numbers of tokens")
    places = zip(_texts(arrays["length_sets"]), rows, strict=True)
    return dict(zip(places, tokens.tolist(), strict=True))


def _begun(arrays: Arrays) -> list[Begun]:
    tokens, logprobs = arrays["tokens"], arrays["logprobs"]
    shapes = [arrays[name].shape for name in ("tokens", "logprobs", "versions")]
    if shapes != [(len(tokens),), (len(tokens),), (len(arrays["versions"]), 3)]:
        raise ValueError(f"tokens, logprobs and versions of shapes {shapes} are not of the same samples")
    spans = [VersionSpan(version=v, start=s, end=e) for v, s, e in arrays["versions"].tolist()]
    ends = [_end(text) for text in _texts(arrays["ends"])]
    places = _parts_of(tokens, arrays["lengths"])
    return [
        Begun(
            token_ids=tokens[start:end],
            logprobs=logprobs[start:end],
            versions=spans[first:last],
            finish=finish,
            ended_by=ended_by,
            text=text,
            error=error,
        )
        for (start, end), (first, last), (finish, ended_by, text, error) in zip(
            places, _parts_of(spans, arrays["spans"]), ends, strict=True
        )
    ]


def _end(text: str) -> tuple[Finish | None, int | str | None, str, str]:
    found = json.loads(text)
    if not (isinstance(found, list) and len(found) == 4):
        raise ValueError(f"no sample ends so: {text[:80]}")
    finish, ended_by, said, error = found
    kinds = (type(ended_by), type(said), type(error))  # a bool would be an int, too
    if finish not in (None, *get_args(Finish)) or kinds not in [(end, str, str) for end in (int, str, type(None))]:
        raise ValueError(f"no sample ends so: {text[:80]}")
    return finish, ended_by, said, error


def _parts_of(values: Sized, lengths: np.ndarray) -> list[tuple[int, int]]:
    """`_parts`; raises ValueError unless these are all of the values."""
    if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(values):
        raise ValueError(f"{len(values)} values are not parts of {lengths.tolist()}")
    return _parts(lengths)


def _episodes(arrays: Arrays) -> list[Episode]:
    turns = _turns(arrays)
    kinds = [_STATUSES[each] for each in arrays["statuses"].tolist()]
    parts, texts, marked = _parts(arrays["turns"]), _texts(arrays["texts"]), _marked(arrays, len(kinds))
    return [
        Episode(turns=turns[start:end], status=status, text=text, marked_text=with_special)
        for (start, end), status, text, with_special in zip(parts, kinds, texts, marked, strict=True)
    ]


def _marked(arrays: Arrays, count: int) -> list[str | None]:
    if "is_marked" not in arrays:  # written when nobody kept them
        return [None] * count
    pairs = zip(_texts(arrays["marked"]), arrays["is_marked"].tolist(), strict=True)
    return [text if there else None for text, there in pairs]


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
        if end > len(content):
            raise ValueError("the last text is not whole")
        found.append(content[at + 4 : end].decode("utf-8", "surrogatepass"))
        at = end
    return found
