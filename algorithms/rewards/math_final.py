r"""Where a completion states its final answer.

The content of the last \boxed{}; else the line after the last ####; else of the last sentence that holds a number, what
stands after "is" or "=" when it is an expression as a whole, or the last number. A text that offers alternatives ("18
or 20") has none.
"""

import re

from algorithms.rewards.math_text import LONGEST, fault_in, is_name, normalised

_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])[\"')\]*]{0,4}\s+|\n+")
_STATES = re.compile(r"\b(?:is|are|be|equals|equal to|gives|get|answer)\b:?|=|:(?=\s)|≈|\\approx", re.IGNORECASE)
_AMOUNT = (
    r"(?:(?<![\w)}\]])[-\u2212\u2013])?(?:\\?\$|€|£)?\s?(?<![\w.])"
    r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!|[\u00a0\u2009\u202f~])\d{3})+|\d+)?"
    r"(?:(?<=\d)\.\d+|(?<![\d.])\.\d+|(?<=\d))(?:[eE][+-]?\d+)?"
    r"(?:\s?\\?%|\s(?:percent|thousand|million|billion|trillion)\b)?"
)
"""Sign, currency, digits, decimals and exponent, percent or scale."""
_VALUE = re.compile(
    rf"(?:{_AMOUNT})(?:\s?/\s?\d+(?![\d.,]*\d))?|-?\\[dt]?frac\{{[^{{}}]{{1,50}}\}}\{{[^{{}}]{{1,50}}\}}"
)
_MATHS = re.compile(r"\$([^$\n]{1,500})\$|\\\(([^\n]{1,500}?)\\\)|\\\[([^\n]{1,500}?)\\\]")
_JOINED = re.compile(r"\d[^\d.?!]{0,30}?(?<![A-Za-z])or(?![A-Za-z])[^\d.?!]{0,20}$")
_NEXT = re.compile(r"[^\w.?!;]{0,12}(?:\\text\{)?\s{0,3}or(?![A-Za-z])[^\d.?!;\n]{0,20}[\d\\]")
_TAIL = 50_000
"""Characters at the end of a text without a box that are searched for its last sentence."""


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Begin, end and content of each \boxed{} that is closed; of those in each other, the outer one."""
    opened: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, str]] = []
    # A brace behind a backslash is a token of neither group: it opens and closes nothing.
    for token in _BRACES.finditer(text):
        if token[1]:
            opened.append((token.start(), token.end()))
        elif token[2] == "{":
            opened.append(None)
        elif token[2] and opened and (box := opened.pop()) is not None:
            while found and found[-1][0] > box[0]:
                found.pop()
            found.append((box[0], token.end(), text[box[1] : token.start()]))
    return found


def stated_answer(text: str) -> str | None:
    """The normalised answer that a completion states; None when there is none, or several."""
    if boxed := boxes(text):
        begin, end, content = boxed[-1]
        # Where only one is, nothing stands before it that could be an alternative.
        before = boxed[-2][1] if len(boxed) > 1 else begin
        # An "or" behind the last box, or between the last two.
        offered = _NEXT.match(text[end : end + 80]) or _NEXT.match(text[before : begin + 1])
        answer = normalised(content)
        return None if offered or fault_in(answer) else _right_side(answer)
    _, marked, after = text.rpartition("####")  # as GSM8K's solutions end
    if marked:
        lines = after.strip().splitlines()
        line = lines[0].strip() if lines else ""
        return whole(line) or _of_sentence(_SENTENCES.split(line)[0])
    for sentence in reversed(_SENTENCES.split(text[-_TAIL:])):
        if answer := whole(sentence) or _of_sentence(sentence):
            return answer
        # A number that could not be read whole: one of an earlier sentence is not the answer either.
        if re.search(r"\d|\\[A-Za-z]{2}", sentence):
            return None
    return None


def gold_text(text: str) -> str:
    r"""The normalised gold answer: in the last \boxed{}, else the line after the last ####, else the text."""
    if boxed := boxes(text):
        return normalised(boxed[-1][2])
    _, marked, after = text.rpartition("####")
    lines = after.strip().splitlines() if marked else [text]
    return normalised(lines[0] if lines else "")


def whole(text: str) -> str | None:
    """The text normalised, if it is an expression from its first to its last character."""
    stripped = text.strip(" *_`")
    if not stripped or len(stripped) > LONGEST:
        return None
    answer = normalised(stripped)
    return None if fault_in(answer) else _right_side(answer)


def _of_sentence(sentence: str) -> str | None:
    """What is stated last in a sentence: an expression after "is" and the like, or the last number or formula."""
    sentence = sentence[-LONGEST:]  # what is stated last stands there
    for found in list(_STATES.finditer(sentence))[:-4:-1]:  # the last three, from the end
        rest = sentence[found.end() :].strip(" *_`.!?,")
        if re.search(r"\d.{0,30}(?<![A-Za-z])or\W{0,3}\w{0,8}\W{0,3}$", sentence[: found.end()][-60:]):
            return None
        answer = whole(rest)
        if answer and (not is_name(answer) or (len(rest) == 1 and rest.isupper()) or rest.startswith(("(", "\\", "$"))):
            return answer
    numbers = list(_VALUE.finditer(sentence))
    maths = [found for found in _MATHS.finditer(sentence) if whole(found[1] or found[2] or found[3])]
    last = max(numbers[-1:] + maths[-1:], key=lambda found: (found.end(), -found.start()), default=None)
    if last is None or _JOINED.search(sentence[max(0, last.start() - 200) : last.start()]):
        return None
    return whole(last[0])


def _right_side(answer: str) -> str:
    """Of a computation such as 9 * 2 = 18, its result; an equation in letters stays."""
    left, equals, right = answer.rpartition("=")
    return right.strip() if equals and re.search(r"\d", left) and not re.search(r"[A-Za-z<>!]", left) else answer
