"""How reward functions are found by name, and the built-in ones. No Ray."""

import json
import math
import sys
import threading
import time
from pathlib import Path

import pytest

from actors.config import UserError
from algorithms.config import RewardFunction
from algorithms.rewards.built_in import exact_match, math_answer
from algorithms.rewards.calls import resolve
from algorithms.words import kind_of, shorten

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data"


def problem(name: str, index: int = 0) -> str:
    with pytest.raises(UserError) as caught:
        resolve(RewardFunction(name=name), index)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"reward.functions.{index}.name: ") and text.endswith(f"got {name}")
    return text


def test_names_that_do_not_resolve_are_explained_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_reward.py").write_text("limit = 3\ndef score(completion): return 1\n")
    Path("broken.py").write_text("x = 1\ndef f(:\n")
    Path("raises.py").write_text("\n\nvalue = {}['gone']\n")
    Path("leaves.py").write_text("import sys\nsys.exit(3)\n")
    Path("ends.py").write_text("import sys\nsys.exit('')\n")
    Path("long.py").write_text("raise ValueError('x' * 100_000)\n")
    Path("needs.py").write_text("import no_such_package\n")

    assert "did you mean my_reward.py?" in problem("my_rewrd.py:score", 2)
    assert "did you mean score?" in problem("my_reward.py:scoer")
    Path("folder.py").mkdir()
    assert "must be a file, folder.py is a directory, got" in problem("folder.py:score")
    assert "limit must be a function, is a number 3" in problem("my_reward.py:limit")
    assert "name the function too, as my_reward.py:function" in problem("my_reward.py")
    assert "did you mean exact_match?" in problem("exact_mach")
    assert "SyntaxError" in problem("broken.py:f") and "broken.py, line 2" in problem("broken.py:f")
    assert "KeyError: 'gone' (raises.py line 3)" in problem("raises.py:f")
    assert "SystemExit: 3 (leaves.py line 2)" in problem("leaves.py:f")
    assert "failed with SystemExit (ends.py line 2)" in problem("ends.py:f")
    assert "xxx ... (long.py line 1), got" in problem("long.py:f") and len(problem("long.py:f")) < 400
    assert "No module named 'no_such_package' (needs.py line 1)" in problem("needs.py:f")
    assert "No module named 'no_such_package' (needs.py line 1)" in problem("needs:f")
    assert "no module named my_rewardz (did you mean my_reward?)" in problem("my_rewardz:score")


def test_functions_of_the_wrong_shape_are_refused(tmp_path):
    path = tmp_path / "shapes.py"
    path.write_text(
        "async def later(completion): return 1\n"
        "def neither(text): return 1\n"
        "def both(completion, completions): return 1\n"
        "def by_position(completion, answer, /): return 1\n"
    )
    assert "later must be a plain function, is async" in problem(f"{path}:later")
    assert "must take completion" in problem(f"{path}:neither")
    assert "must take completion" in problem(f"{path}:both")
    assert "by name, not by position only" in problem(f"{path}:by_position")


def test_a_file_may_have_the_name_of_a_module_and_import_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "reward_neighbour.py").write_text("VALUE = 0.25\n")
    (tmp_path / "math.py").write_text("import reward_neighbour\ndef score(completion): return reward_neighbour.VALUE\n")
    call = resolve(RewardFunction(name=f"{tmp_path}/math.py:score"))
    assert call("x") == 0.25
    assert sys.modules["math"] is math
    assert resolve(RewardFunction(name="algorithms.rewards.built_in:exact_match")) is exact_match


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("The answer is 18.", "9 * 2 = 18\n#### 18", 1.0),
        (r"First 20, so \boxed{18}", "18", 1.0),
        (r"\boxed{\frac{36}{2}}", "18", 1.0),
        ("9*2=18\n#### 18", "#### 18", 1.0),
        ("#### 18 dollars", "#### 18", 1.0),
        ("20 then 18", "18", 1.0),
        ("18 then 20", "18", 0.0),
        ("It costs $1,800.00", "#### 1,800", 1.0),
        ("-18", "18", 0.0),
        ("18", 18, 1.0),
        ("no idea", "18", 0.0),
        ("", "18", 0.0),
    ],
)
def test_math_reads_the_final_answer(completion, answer, reward):
    assert math_answer(completion, answer) == reward


def test_math_refuses_a_gold_answer_without_a_number():
    with pytest.raises(ValueError, match="gold answer"):
        math_answer("18", "#### unknown")


def test_math_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(math_answer("so 18", "18")))
    thread.start()
    thread.join(timeout=30)
    assert found == [1.0]


def test_math_gives_up_on_an_expression_without_end(monkeypatch):
    monkeypatch.setattr("algorithms.rewards.built_in.MATH_TIMEOUT_S", 1)
    started = time.monotonic()
    assert math_answer("$" + "+".join(["x"] * 9000) + "$", "18") == 0.0
    assert time.monotonic() - started < 10


def test_math_on_real_gold_answers():
    if not GSM8K.is_dir():
        pytest.skip("needs ../shared/data")
    rows = [json.loads(line) for line in (GSM8K / "gsm8k_test.jsonl").read_text().splitlines()]
    for row in rows:
        gold = row["answer"].rpartition("####")[2].strip()
        assert math_answer(row["answer"], row["answer"]) == 1.0
        assert math_answer(f"so the answer is {gold}.", row["answer"]) == 1.0
        assert math_answer(rf"Thus \boxed{{{int(gold.replace(',', '')) + 1}}}", row["answer"]) == 0.0


def test_exact_match_ignores_only_surrounding_space():
    assert exact_match(" abc\n", "abc") == 1.0
    assert exact_match("a bc", "abc") == 0.0
    assert exact_match("42", 42) == 1.0
    assert exact_match("abc", " abc\n") == exact_match(" a bc ", "a bc") == 1.0
    assert exact_match("abc", "ABC") == exact_match("abc", "a bc") == 0.0


def test_a_gold_answer_may_have_space_around_it():
    assert math_answer("18", " 18\n") == math_answer("so 18.", "steps\n####  18 ") == 1.0


@pytest.mark.parametrize(("length", "cut"), [(80, False), (81, True)])
def test_long_texts_lose_their_middle(length, cut):
    text = "a" * 40 + "b" * (length - 80) + "c" * 40
    assert shorten(text) == (f"'{'a' * 40} ... {'c' * 40}'" if cut else repr(text))
    assert shorten("two\nlines") == r"'two\nlines'" and shorten("abcdefg", 6) == "'abc ... efg'"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"), (True, "true"), (False, "false"), ("", "empty text"), ([], "an empty list"),
        ({}, "an empty mapping"), (" ", "blank text ' '"), ("x", "text 'x'"), (0, "a number 0"), (2.5, "a number 2.5"),
        ((1,), "a list (1,)"), ({"a": 1}, "a mapping {'a': 1}"), (object(), "an object of the class object"),
        ("x" * 60, f"text '{'x' * 60}'"), ("x" * 61, f"text '{'x' * 57}...'"),
    ],
)  # fmt: skip
def test_values_in_plain_words(value, words):
    assert kind_of(value) == words
