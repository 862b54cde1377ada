"""Episodes as tests write them: one response to a prompt, or turns one after another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.episodes import Episode, EpisodeStatus, Turn, VersionSpan


def turn(
    given: Sequence[int], sampled: Sequence[int], logprobs: Any = None, *, version: int = 0, **settings: Any
) -> Turn:
    """All sampled by one version; logprobs are 0 unless they are given."""
    whole = [VersionSpan(version=version, start=0, end=len(sampled))]
    values: dict[str, Any] = {"finish_reason": "stop", "versions": whole} | settings
    return Turn(
        given_token_ids=np.array(given, dtype=np.int32),
        sampled_token_ids=np.array(sampled, dtype=np.int32),
        rollout_logprobs=np.zeros(len(sampled), np.float32) if logprobs is None else np.array(logprobs, np.float32),
        **values,
    )


def episode(
    prompt: Sequence[int],
    response: Sequence[int],
    logprobs: Any = None,
    *,
    status: EpisodeStatus = "ok",
    text: str = "",
    **settings: Any,
) -> Episode:
    """Of one turn."""
    return Episode(turns=[turn(prompt, response, logprobs, **settings)], status=status, text=text)


def split_here(asked: list[tuple[list[Episode], list[list[int]]]]) -> list[list[list[Episode]]]:
    """Splits groups that are no references, as engines do those that are."""
    return [[[group[index] for index in share] for share in shares] for group, shares in asked]
