"""Groups on their way in a checkpoint: what their samples have, as arrays and back."""

import string
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt, VersionSpan
from actors.files.parts import read_arrays, write_arrays
from actors.rollout.types import Begun, Finish
from algorithms.rollouts.groups import prompt_finder
from algorithms.rollouts.saved import PartialGroup, group_arrays, partial_arrays, partial_groups_of

ROWS = [Prompt(index=n, token_ids=[n, 1], text="", row={}, of_set=name) for name in ("", "b") for n in range(9)]
FIND = prompt_finder(ROWS)
# Half a surrogate pair, and what could divide texts, included.
TEXTS = st.text(st.sampled_from(string.ascii_letters + '\0\n"\\é答\ud83d'), max_size=6)


@st.composite
def begun(draw: st.DrawFn) -> Begun:
    """Any sample: without a token, of several versions, going on or ended."""
    lengths = draw(st.lists(st.integers(1, 5), max_size=4))
    ends = np.cumsum([0, *lengths]).tolist()
    versions = [VersionSpan(version=draw(st.integers(0, 2**40)), start=start, end=end) for start, end in pairwise(ends)]
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=ends[-1], max_size=ends[-1]))
    logprobs = draw(st.lists(st.floats(-100, 0, width=32), min_size=ends[-1], max_size=ends[-1]))
    how: dict[str, Any] = {}
    if finish := draw(st.sampled_from([None, *get_args(Finish)])):
        how = {"ended_by": draw(st.none() | st.integers(0, 2**40) | TEXTS), "text": draw(TEXTS), "error": draw(TEXTS)}
    return Begun(
        token_ids=np.array(tokens, dtype=np.int32),
        logprobs=np.array(logprobs, dtype=np.float32),
        versions=versions,
        finish=finish,
        **how,
    )


GROUPS = st.lists(
    st.builds(
        PartialGroup, prompt=st.sampled_from(ROWS), begun=st.lists(begun(), max_size=4).map(tuple)
    ),
    max_size=4,
)  # fmt: skip


def shown(groups: list[PartialGroup]) -> Any:
    """All of them, in what can be compared."""
    return [(group.prompt, [_shown(each) for each in group.begun]) for group in groups]


def _shown(sample: Begun) -> Any:
    # The bits of tokens and logprobs, and what kind of thing an end is.
    tokens = sample.token_ids.dtype.str, sample.token_ids.tolist()
    numbers = *tokens, sample.logprobs.dtype.str, sample.logprobs.tobytes(), sample.versions
    return *numbers, sample.finish, type(sample.ended_by), sample.ended_by, sample.text, sample.error


@settings(max_examples=200, deadline=None)
@given(GROUPS)
def test_groups_on_their_way_come_back_as_they_were(groups: list[PartialGroup]) -> None:
    arrays = partial_arrays(groups)
    assert shown(partial_groups_of(arrays, FIND)) == shown(groups)
    assert all(array.dtype != object for array in arrays.values()), "a file of arrays holds nothing that runs"


@settings(max_examples=300, deadline=None)
@given(GROUPS.filter(bool), st.data())
def test_damaged_arrays_are_no_other_groups(groups: list[PartialGroup], data: st.DataObject) -> None:
    """An array that is missing, or has an element less or more than it had."""
    arrays = partial_arrays(groups)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays.pop(name)
    # The last element again, as a checkpoint's bytes are compared with their hash: what is left is what is not there.
    changes = ["missing", *(["short", "long"] if len(array) else [])]
    change = data.draw(st.sampled_from(changes))
    if change != "missing":
        arrays[name] = array[:-1] if change == "short" else np.concatenate([array, array[-1:]])
    with pytest.raises((KeyError, ValueError, IndexError)):
        partial_groups_of(arrays, FIND)


ONE = PartialGroup(
    prompt=ROWS[3],
    begun=(
        Begun(
            token_ids=np.array([4, 5], np.int32),
            logprobs=np.array([-1, -2], np.float32),
            versions=[VersionSpan(version=1, start=0, end=2)],
        ),
    ),
)


def text(content: str) -> np.ndarray:
    return np.frombuffer(len(content).to_bytes(4, "little") + content.encode(), np.uint8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.array([99])),
        ("sets", text("z")),
        ("samples", np.array([-1])),
        ("samples", np.array([1.0])),
        ("lengths", np.array([[2]])),
        ("tokens", np.array([[4, 5]], np.int32)),
        ("logprobs", np.array([-1], np.float32)),
        ("versions", np.array([[1, 0, 1]])),
        ("versions", np.array([[1, 1, 2]])),
        ("versions", np.array([[1, 0, 2, 5]])),
        ("versions", np.array([1, 0, 2])),
        ("ends", text('["ended", null, "", ""]')),
        ("ends", text('["stop", true, "", ""]')),
        ("ends", text('["stop", 2.5, "", ""]')),
        ("ends", text('["stop", null, 3, ""]')),
        ("ends", text('["stop", null, "", null]')),
        ("ends", text("[null]")),
        ("ends", text("3")),
        ("ends", text("nothing")),
        ("ends", np.frombuffer(b"\1\0\0\0\xff", np.uint8)),
    ],
)
def test_what_no_group_has_written_is_refused(name: str, value: np.ndarray) -> None:
    arrays = partial_arrays([ONE])
    assert "partial_" + name in arrays
    with pytest.raises((KeyError, ValueError, IndexError)):
        partial_groups_of(arrays | {"partial_" + name: value}, FIND)


def test_a_checkpoint_without_groups_on_their_way_has_none(tmp_path: Path) -> None:
    """Those of before have the other arrays only; in one file, neither is taken for the other."""
    scored = group_arrays([], [])
    again = {"again": np.array([3], dtype=np.int64)}
    assert partial_groups_of(scored | again, FIND) == []
    assert not scored.keys() & partial_arrays([ONE]).keys()
    write_arrays(scored | again | partial_arrays([ONE]), tmp_path / "file")
    assert shown(partial_groups_of(read_arrays(tmp_path / "file"), FIND)) == shown([ONE])
    write_arrays(scored | partial_arrays([]), tmp_path / "none")
    assert partial_groups_of(read_arrays(tmp_path / "none"), FIND) == []
