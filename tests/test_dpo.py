"""KTO's responses to other prompts, drawn within an update."""

import numpy as np
import pytest

from actors.config import UserError
from actors.episodes import Sequence
from algorithms.offline.dpo import strangers


def sequence(prompt: list[int], response: list[int]) -> Sequence:
    """Prompt and response as the data code makes them."""
    mask = np.arange(len(prompt) + len(response)) >= len(prompt)
    return Sequence(token_ids=np.array(prompt + response, dtype=np.int64), action_mask=mask)


def test_a_stranger_has_another_prompt_even_where_rows_of_a_prompt_are_neighbours() -> None:
    """Two labelled rows of each pair lie side by side in unpaired preference data."""
    rows = [sequence([1, 2], [5]), sequence([1, 2], [6]), sequence([3, 4], [5]), sequence([3, 4], [7])]
    assert strangers(rows) == [2, 2, 0, 0]
    assert strangers([sequence([1], [5]), sequence([2], [5]), sequence([3], [5])]) == [1, 2, 0]


def test_rows_of_one_prompt_have_no_strangers() -> None:
    """Their mismatched log-ratio would be a matched one."""
    with pytest.raises(UserError, match="responses to different prompts"):
        strangers([sequence([1, 2], [5]), sequence([1, 2], [6])])
