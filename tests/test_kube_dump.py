"""YAML that `tandem k8s` prints: every reader takes it for the same values, whatever they contain."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.kube.dump import dump
from launch.settings.file import parse

TRAPS = [
    *(
        "",
        " ",
        "=",
        "~",
        "<<",
        "_",
        "-",
        "---",
        "...",
        "null",
        "Null",
        "NULL",
        "none",
        "true",
        "True",
        "yes",
        "No",
        "ON",
    ),
    *(
        "off",
        "y",
        "N",
        "1e3",
        "0o17",
        "017",
        "0x1F",
        "0b11",
        "1_000",
        "12:30:45",
        "2026-01-02",
        ".5",
        "+1",
        "-1",
        ".inf",
    ),
    *(".NaN", "nan", "1.", "1,000", "@a", "`a`", "!tag", "&anchor", "*alias", "%TAG", "|", ">", "? a", "a: b", "a #b"),
    *(
        "#a",
        "[a]",
        "{a: b}",
        "a,b",
        "'a'",
        '"a"',
        "a\\b",
        "\ta",
        "a\t",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\n\nb\n",
        "a\n b\n",
    ),
    *(
        " a\nb",
        "a \nb",
        "a\n ",
        "a\n\n",
        "a\r\nb",
        "a\nb\tc",
        "a\n--- b\n",
        "a\n# b\n",
        "a\n- b",
        "$(HOME)",
        "é",
        "日本",
    ),
    *(
        "😀",
        "\U0001f600\nb",
        "\x07",
        "\x7f",
        "\x85",
        "\xa0",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\ufffe",
        "\U0010ffff",
    ),
    *("x" * 5000, "x " * 3000, "😀" * 900),
]
# Without NUL, which a configuration may not hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.sampled_from(TRAPS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


def readings(text: str) -> list[Any]:
    """What YAML 1.1 (PyYAML) and YAML 1.2's core schema (ours) take a document for."""
    return [yaml.safe_load(text), parse(text, "a test")]


@pytest.mark.parametrize("text", TRAPS, ids=lambda text: ascii(text)[:30])
def test_traps_stay_text(text: str) -> None:
    """As a value, as an item, as a key, in a manifest's depth and alone."""
    for value in ({"spec": {"a": text}}, {"spec": [text]}, {"spec": {text: text}}, [[text]], text):
        assert readings(dump([value])) == [value] * 2


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_every_reader_gets_the_values_back(value: Any) -> None:
    read = readings(dump([value]))
    assert read == [value] * 2
    assert [repr(item) for item in read] == [repr(value)] * 2  # 1, 1.0 and true are equal in Python


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3))
def test_documents_stay_apart(values: list[Any]) -> None:
    assert list(yaml.safe_load_all(dump(values))) == values


def test_order_and_form_are_stable() -> None:
    manifest = {"spec": {"b": 1, "a": []}, "data": {"run.yaml": "a: 1\nb:\n  c: 2\n"}, "kind": "K", "apiVersion": "v1"}
    assert dump([manifest, {"kind": "L"}]) == (
        "apiVersion: v1\nkind: K\nspec:\n  b: 1\n  a: []\n"
        "data:\n  run.yaml: |\n    a: 1\n    b:\n      c: 2\n---\nkind: L\n"
    )


def test_long_lines_are_not_folded() -> None:
    assert len(dump([{"a": "word " * 400 + "end"}]).splitlines()) == 1


def test_small_numbers_are_numbers_for_every_reader() -> None:
    """YAML 1.1 takes 1e-06 for text, as it has no point."""
    assert dump([{"lr": 1e-06, "eps": 1.5e-300}]) == "lr: 1.0e-06\neps: 1.5e-300\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"a", {1: "a"}, complex, "\ud800"], ids=ascii)
def test_what_yaml_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        dump([{"a": value}])
