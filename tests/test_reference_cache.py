"""Reference logprobs on disk: found again by content, never those of another model or of other tokens."""

import os
from pathlib import Path

import numpy as np
import pytest

from actors.episodes import Sequence
from actors.models.hub_cache import _LOCATED, located
from algorithms.offline.reference_cache import ReferenceCache, model_content


def _sequence(tokens: list[int], prompt: int = 1) -> Sequence:
    return Sequence(token_ids=np.array(tokens, dtype=np.int64), action_mask=np.arange(len(tokens)) >= prompt)


ROWS = [[_sequence([1, 2, 3]), _sequence([1, 4])], [_sequence([5, 6]), _sequence([5, 7, 8, 9])]]
VALUES = np.array([-3.25, -1.0 / 3, -0.0078125, -123456.789])


def test_what_was_added_is_read_in_any_order_and_by_another_process(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a model")
    assert cache.missing(ROWS) == ROWS
    cache.add(ROWS, VALUES)
    for one in (cache, ReferenceCache(tmp_path, "a model")):
        assert one.missing(ROWS) == []
        assert one.read(ROWS).tolist() == VALUES.tolist()
        assert one.read([ROWS[1], ROWS[0][::-1]]).tolist() == VALUES[[2, 3, 1, 0]].tolist()
        assert one.read(ROWS).dtype == np.float64


def test_further_rows_join_those_on_disk(tmp_path: Path) -> None:
    """A row is missing as soon as one of its sequences is."""
    ReferenceCache(tmp_path, "a model").add(ROWS[:1], VALUES[:2])
    cache = ReferenceCache(tmp_path, "a model")
    half = [ROWS[0][0], ROWS[1][0]]
    assert cache.missing([ROWS[0], half, ROWS[1]]) == [half, ROWS[1]]
    cache.add(ROWS[1:], VALUES[2:])
    assert ReferenceCache(tmp_path, "a model").read(ROWS).tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    "other",
    [_sequence([1, 2, 4]), _sequence([1, 2, 3, 3]), _sequence([1, 2]), _sequence([1, 2, 3], prompt=2)],
    ids=["another token", "longer", "shorter", "a longer prompt"],
)
def test_a_sequence_is_known_by_its_tokens_and_its_actions(tmp_path: Path, other: Sequence) -> None:
    cache = ReferenceCache(tmp_path, "a model")
    cache.add([[ROWS[0][0]]], VALUES[:1])
    assert cache.missing([[other]]) == [[other]]
    with pytest.raises(KeyError):
        cache.read([[other]])
    equal = _sequence([1, 2, 3])
    assert cache.missing([[equal]]) == []


def test_tokens_and_mask_are_not_confused(tmp_path: Path) -> None:
    """Two sequences whose bytes, end to end, could be the same have different lengths, hence different keys."""
    cache = ReferenceCache(tmp_path, "a model")
    zeros = [_sequence([0] * length, prompt=length) for length in range(1, 40)]
    cache.add([zeros[:1]], VALUES[:1])
    assert len(cache.missing([[sequence] for sequence in zeros])) == len(zeros) - 1


def test_models_do_not_share_values(tmp_path: Path) -> None:
    ReferenceCache(tmp_path, "a model").add(ROWS, VALUES)
    assert ReferenceCache(tmp_path, "another model").missing(ROWS) == ROWS
    ReferenceCache(tmp_path, "another model").add(ROWS, VALUES + 1)
    assert ReferenceCache(tmp_path, "a model").read(ROWS).tolist() == VALUES.tolist()


def test_a_write_that_was_cut_off_leaves_what_was_there(tmp_path: Path) -> None:
    """Half a file beside the whole one is not read, and nothing of a finished write is left behind."""
    ReferenceCache(tmp_path, "a model").add(ROWS, VALUES)
    (file,) = tmp_path.iterdir()
    file.with_suffix(".99.partial").write_bytes(file.read_bytes()[:50])
    assert ReferenceCache(tmp_path, "a model").read(ROWS).tolist() == VALUES.tolist()


def test_too_few_values_are_refused(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a model")
    with pytest.raises(ValueError):
        cache.add(ROWS, VALUES[:3])
    assert ReferenceCache(tmp_path, "a model").missing(ROWS) == ROWS


def test_a_model_is_named_by_what_its_directory_holds(tmp_path: Path) -> None:
    """Other weights of the same size at the same place are another model; so is another precision."""
    file = tmp_path / "weights"
    file.write_text("abc")
    before = model_content(tmp_path, "fp32")
    assert before == model_content(tmp_path, "fp32")
    assert before != model_content(tmp_path, "bf16")
    file.write_text("abd")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))  # two writes may fall into one tick of the file system
    changed = model_content(tmp_path, "fp32")
    assert changed != before
    file.write_text("abcd")
    assert model_content(tmp_path, "fp32") not in (before, changed)
    assert model_content(Path("organisation/model"), "fp32") != model_content(Path("organisation/other"), "fp32")


def test_a_model_of_the_hub_is_named_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "models--ours--model"
    (cached / "refs").mkdir(parents=True)
    names = {}
    for commit in ("a" * 40, "b" * 40):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text("{}")
        (cached / "refs/main").write_text(commit)
        names[commit] = model_content(Path("ours/model"), "fp32")
        assert commit in model_content(Path(located("ours/model")), "fp32")
        assert commit in names[commit]
        _LOCATED.clear()
    assert len(set(names.values())) == 2
