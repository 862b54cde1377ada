"""The reward `math`: golds are read whole, and what a completion states last is its answer. No Ray."""

import time

import pytest

from actors.config import UserError
from algorithms.rewards.built_in import math_answer, parsed_gold
from algorithms.rewards.math_golds import check_golds

GOLDS = [
    (r"2\sqrt{3}", r"\sqrt{12}", "2"),
    (r"\sqrt{2}", r"2^{1/2}", "2"),
    (r"\dfrac{1}{2}", "0.5", "1"),
    (r"\frac12", "1/2", "12"),
    ("(1,2)", "(1, 2)", "(2,1)"),
    (r"\left(\frac{1}{2}, 3\right)", "(1/2, 3)", "3"),
    ("[0,1)", r"\left[0,1\right)", "[0,1]"),
    (r"(-\infty, 3]", r"\left(-\infty,3\right]", "3"),
    (r"(-\infty,-1)\cup(1,\infty)", r"(-\infty,-1) \cup (1,\infty)", "1"),
    (r"\{1,2,3\}", "1, 2, 3", "3"),
    ("1,2", "2,1", "2"),
    ("1,200", r"1\,200", "200"),
    (r"1\,200", "1200", "201"),
    ("1{,}200", "1,200.00", "1"),
    (r"1\!,\!200", "1200", "1"),
    ("1 200", "1200", "201"),
    (r"\$18.00", "18", "0"),
    ("$5", r"\$5", "6"),
    ("1e3", "1000", "3"),
    ("1.5e-3", "0.0015", "1.5"),
    (r"1.2\times10^3", "1200", "1.2"),
    ("1.5 million", "1500000", "1.5"),
    (r"1.5\text{ million}", "1,500,000", "1.5"),
    (r"1.5 \text{ million dollars}", "1500000", "1.5"),
    ("1e100", "10^{100}", "100"),
    ("10%", r"10\%", "1"),
    (r"10\%", "0.1", "0.01"),
    ("18 apples", "18", "19"),
    (r"10\sqrt{5}\text{ cm}", r"10\sqrt{5}", "10"),
    (r"5\text{ m}^2", "5", "25"),
    ("-5", "\u22125", "5"),
    (r"-\frac{7}{8}", "-7/8", "7/8"),
    (r"11\frac{1}{4}", "45/4", "11"),
    ("3 1/2", "7/2", "1/2"),
    ("2^10", "1024", "2"),
    (r"110_2", "6", "110"),
    (r"0.\overline{36}", r"\frac{4}{11}", "0.36"),
    (r"30^\circ", "30", "0"),
    (r"3\pi", r"\pi \cdot 3", "3"),
    ("2+3i", "3i+2", "2"),
    (r"6+4\sqrt{2}", r"4\sqrt{2}+6", "6"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}", "1"),
    (r"\log_2 3", r"\log_{2}(3)", "3"),
    ("x^2+3x", "x(x+3)", "x^2"),
    ("x=5", "5", "6"),
    ("y=2x+1", "y=1+2x", "1"),
    (r"x \le 3", r"x \leq 3", "3"),
    (r"\binom{5}{2}", "10", "5"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}", "4"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "3"),
    ("√3", r"\sqrt{3}", "3"),
    ("(B)", "B", "C"),
    (r"\text{Monday}", r"\text{Monday}", r"\text{Friday}"),
    (r"So $x = 2\sqrt{3}$, that is \boxed{2\sqrt{3}}", r"2\sqrt{3}", "2"),
    ("9 * 2 = 18\n#### 18", "18", "9"),
]
"""Gold, an equal answer, and one that is not."""

COMPLETIONS = [
    ("#### 18\nI checked it 3 times.", 1),
    ("#### 18. I checked it 3 times.", 1),
    ("#### $18 a day\nThat took 2 steps and 7 minutes.", 1),
    (r"#### \$18.00", 1),
    ("####\n18", 1),
    ("#### 17\nNo, again:\n#### 18", 1),
    ("#### 18\n#### 17", 0),
    ("#### 18 or 20", 0),
    ("#### the answer is 18", 1),
    (r"First \boxed{17}, no: \boxed{18}", 1),
    (r"First \boxed{18}, no: \boxed{17}", 0),
    (r"\boxed{18} #### 17", 1),
    (r"\boxed{18} and that is 2 more than 16.", 1),
    (r"\boxed{\boxed{18}}", 1),
    (r"\boxed {18}", 1),
    (r"\boxed{18 \text{ dollars}}", 1),
    (r"\boxed{18} so \boxed{", 1),
    (r"\boxed{18 or 20}", 0),
    (r"\boxed{18} or \boxed{20}", 0),
    (r"\boxed{20} or \boxed{18}", 0),
    (r"\boxed{18 \text{ or } 20}", 0),
    (r"\boxed{18, 20}", 0),
    (r"\boxed{\pm 18}", 0),
    (r"\boxed{nothing}, it was 18", 0),
    ("The answer is 18 or 20", 0),
    ("The answer is 20 or 18.", 0),
    ("The answer is 20 or maybe 18.", 0),
    ("Answer: 20 or Answer: 18", 0),
    ("The answer is 20; or 18", 0),
    ("It is $20 or $18.", 0),
    ("The answers are 20 and 18.", 0),
    ("The answer is 18.", 1),
    ("**18**", 1),
    ("The answer is **18**.", 1),
    ("So 20 - 2 = 18.", 1),
    ("Either way, he makes $18 a day.", 1),
    ("20 at first. In the end he has 18 left!", 1),
    ("In the end he has 18 left. At first 20.", 0),
    ("The answer is 18. I hope this helps!", 1),
    ("The answer is $18$.", 1),
    (r"The answer is \(18\).", 1),
    (r"Then \[ x = 18 \]", 1),
    ("It is 1.8e1.", 1),
    ("It is 0.018 thousand.", 1),
    ("18 then 20", 0),
    ("-18", 0),
    ("It is -18.", 0),
    ("180", 0),
    ("no idea", 0),
    ("18" * 30_000, 0),
    ("$" * 60_000 + "18 or " * 9000, 0),
]
"""Completion, and its reward where the gold is 18."""

MISTAKES = [
    ("unknown", "holds words"),
    ("", "holds no mathematical expression"),
    ("18 or 20", "holds alternatives"),
    (r"2 \text{ or } 3", "holds alternatives"),
    ("18 (wrong)", "holds words"),
    ("2 3", "holds several numbers"),
    ("18.0.0", "holds several numbers"),
    (r"\frac{1}{", "has brackets that do not match"),
    ("I think that it is 5", "holds words"),
    ("5 +", "is not complete"),
    ("18 apples and 20 pears", "holds words"),
    (r"\nosuch{", "has brackets that do not match"),
    (None, "is null"),
    (True, "is a truth value"),
    ([18], "is a list"),
]


@pytest.mark.parametrize(("gold", "equal", "other"), GOLDS)
def test_a_gold_is_read_whole(gold: str, equal: str, other: str) -> None:
    assert math_answer(rf"Thus \boxed{{{equal}}}", gold) == 1.0
    assert math_answer(equal, gold) == 1.0
    assert math_answer(gold, gold) == 1.0
    assert math_answer(rf"Thus \boxed{{{other}}}", gold) == 0.0
    assert math_answer(f"Thus it is {other}", gold) == 0.0


@pytest.mark.parametrize(("completion", "reward"), COMPLETIONS, ids=range(len(COMPLETIONS)))
def test_what_a_completion_states_last_is_its_answer(completion: str, reward: float) -> None:
    started = time.process_time()
    assert math_answer(completion, "18") == reward
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize(("gold", "fault"), MISTAKES)
def test_a_gold_that_cannot_be_read_whole_is_a_mistake_with_its_row(gold: object, fault: str) -> None:
    with pytest.raises(ValueError, match=f"the gold answer {fault}, got "):
        parsed_gold(gold)
    with pytest.raises(UserError) as caught:
        check_golds({1: {"answer": "18"}, 2: {"answer": gold}}, "data.train")
    assert str(caught.value).startswith(
        "data.train: row 2: answer must be a mathematical expression for the reward math, "
    )
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_a_gold_that_only_the_parser_refuses_is_found_too() -> None:
    with pytest.raises(UserError, match=r"row 1: .* is no mathematical expression as a whole, got 'C. 5'"):
        check_golds({1: {"answer": "C. 5"}}, "data.train")
    rows = [{"answer": gold} for gold, _, _ in GOLDS] + [{"question": "no gold"}]
    check_golds(dict(enumerate(rows, start=1)), "data.train")


def test_many_golds_are_checked_in_little_time() -> None:
    started = time.process_time()
    check_golds({number: {"answer": f"so {number}\n#### {number:,}"} for number in range(8000)}, "data.train")
    assert time.process_time() - started < 1.0
