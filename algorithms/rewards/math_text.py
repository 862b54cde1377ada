r"""The text of a mathematical answer: written in one way, and read whole or not at all.

math-verify takes what it finds in a text, which may be a part of it: of `2\sqrt{3}` the 2, of `1\,200` the sum of 1 and
200. So an answer is first written as LaTeX without what does not count (dollars, spaces, units), and parsed whole.
"""

import re
from decimal import Decimal
from fractions import Fraction

LONGEST = 2_000
"""Characters of the longest answer that is read: longer ones are wrong, and no gold answers."""
_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
    }
    | {"≥": r"\ge ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}"}
    | {"°": "", "\u222a": r"\cup ", "∅": r"\emptyset ", "\u00a0": "~", "\u2009": "~", "\u202f": "~", "€": "", "£": ""}
    | {"¥": ""}
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_SCALED = re.compile(
    rf"(?<!\d)({_NUMBER})\s*(?:\\text(?:rm)?{{\s*|\\mathrm{{\s*)?({'|'.join(_SCALES)})s?\b(?:[ A-Za-z]*}})?",
    re.IGNORECASE,
)
_SCIENTIFIC = re.compile(rf"(?<![A-Za-z\d.])({_NUMBER})[eE]([+-]?\d{{1,3}})(?![\d.A-Za-z])")
_SPACE = r"(?:(?<!\\)\\[,;:! ]|\\quad|\\qquad|\\thinspace|~)"
_GROUPS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:(?:\{{,\}}|\\!,(?:\\!)?|,\\!|\\!|{_SPACE}| |_)\d{{3}})+(?!\d)")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_OPEN, _CLOSE = re.compile(r"[(\[]|\\\{"), re.compile(r"[)\]]|\\\}")
_WRAPPED = re.compile(
    r"\$\$(?P<a>[^$]*)\$\$|\$(?P<b>[^$]*)\$|\\\((?P<c>.*)\\\)|\\\[(?P<d>.*)\\\]|\*\*(?P<e>[^*]*)\*\*|`(?P<f>[^`]*)`"
    r"|\\(?:boxed|fbox|mathbf|mathrm|textbf|bf|mathit)\s*\{(?P<g>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
    r"|\\text\s*\{(?P<h>\s*[-+$\\]*\d[^{}]*)\}",
    re.DOTALL,
)
_PERCENT = re.compile(r"(?<=\d)\s*(?:\\%|%|\s(?:percent|pct|per cent)\b|\\text\{\s*(?:percent|%|\\%)\s*\})")
_FUNCTIONS = re.compile(r"(?<![A-Za-z\\])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infty)(?![A-Za-z])")
_WORDS = re.compile(
    r"\b(?:an|and|are|as|at|be|both|but|by|do|each|else|for|he|if|in|is|it|its|me|my|no|not|of|on|or|per|she|so|than|that"
    r"|the|them|then|they|this|to|up|us|was|we|who|yes|yet|you|one|two|six|ten|all|any|few|new|off|old|out|own|too|via)\b",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?<=[\d}%)])(?:\\,|\\;|\\ |~|\s)*(?:\\(?:text|mathrm|textrm|mbox)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?"
    r"|\s[A-Za-z][A-Za-z'/-]*(?:\s[A-Za-z'/-]+){0,4}(?:\^\{?\d\}?)?)\s*\.?$"
)
_PLAIN = re.compile(r"[-+]?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,15})?")
_NAME = re.compile(r"\\(?:text|mathrm|textrm|textbf)\s*\{[^{}]*\}|\(?[A-Za-z]\)?")
"""An answer that is a word or a letter, as in a question with choices."""
_ALTERNATIVES = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\lor\b|\\vee\b")


def is_plain_number(text: str) -> bool:
    """Whether a text is an ordinary decimal number, which nothing can misread."""
    return _PLAIN.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a normalised answer is a word or a letter."""
    return _NAME.fullmatch(text) is not None


def normalised(text: str) -> str:
    r"""An answer as LaTeX that math-verify parses whole; without dollars, unit, outer brackets of mathematics.

    Example: normalised(r"$1\,200 \text{ apples}$") is "1200", normalised("1.5 million") "1500000".
    """
    if len(text) > LONGEST:
        return text
    text = _unwrapped(text.translate(_UNICODE))
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\limits|\^\{?\\circ\}?|\\degree|\\\$|\$", "", text)
    text = re.sub(r"\\text\s*\{\s*(and|or)\s*\}", r" \1 ", text).strip()
    # Separators of thousands first: scales and exponents are multiplied out by digits that stand together.
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _without_commas(text)
    text = _SCALED.sub(lambda found: _shifted(found[1], _SCALES[found[2].lower()]), text)
    text = _SCIENTIFIC.sub(lambda found: _shifted(found[1], int(found[2])), text)
    text = _PERCENT.sub(r"\\%", text)
    # 1 1/2 is one and a half, and no product.
    text = re.sub(r"(?<![\w./}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}", text)
    # A repeating decimal is the fraction that it stands for.
    text = re.sub(r"(?<!\d)(\d*)\.(\d*)\\overline\s*\{(\d+)\}", _repeating, text)
    text = re.sub(r"(?<![\w.])(\d+)_\{?(\d{1,2})\}?(?![\w.])", _of_base, text)  # 12_5 is a number in base 5
    # "18 or x" would lose its second half, as a unit.
    if not _ALTERNATIVES.search(text):
        text = _UNIT.sub("", text)
    text = re.sub(r"(?<=[\w})\]])\s+and\s+(?=[-\w\\({])", ", ", text)
    text = re.sub(r"√\s*(\d+|[A-Za-z])|√\s*\(([^()]*)\)", lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    text = _FUNCTIONS.sub(r"\\\1", text.replace("**", "^"))
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\^\s*(-\d+|\d{2,})", r"^{\1}", text)
    return re.sub(rf"{_SPACE}|\s+", " ", text).strip()


def fault_in(text: str) -> str | None:
    r"""Why a normalised answer is no mathematical expression from its first to its last character; None if it may be.

    Example: fault_in("18 or 20") is "holds alternatives".
    """
    if len(text) > LONGEST:
        return f"is longer than {LONGEST:,} characters"
    if not re.search(r"[A-Za-z\d]", text):
        return "holds no mathematical expression"
    if _ALTERNATIVES.search(text):
        return "holds alternatives"
    if is_name(text):
        return None
    bare = re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\\\", "#", text)
    if re.search(r"\\(?:text|mathrm|mbox)", bare):
        return "holds words"
    bare = re.sub(r"\\[A-Za-z]+", "#", re.sub(r"\\[{}|%]", "", bare))
    if re.search(r"[A-Za-z]{4}", bare) or _WORDS.search(bare):
        return "holds words"
    if "#" not in bare and re.fullmatch(r"[A-Za-z]{3,}", bare):
        return "holds words"
    if re.search(r"(?<![_^\d.])[\d.]*\d\s+\d|[A-Za-z]\s+\d|\d\s*\.\s*\d+\.\d|\d,,|\d\.\s", bare):
        return "holds several numbers"
    if odd := re.search(r"[^\w\s.,;:+\-*/^=<>!|()\[\]{}\\&'#]|[^\x00-\x7f]", bare):
        return f"holds the character {odd[0]}"
    if not _balanced(bare, text):
        return "has brackets that do not match"
    if re.search(r"[-+*/^=_,<>:]$", bare) or re.search(r"^[*/^=_,:!]", bare):
        return "is not complete"
    return None


def _unwrapped(text: str) -> str:
    for _ in range(8):  # a box in a formula in bold, at most so deep
        text = text.strip().rstrip(".,;").strip() if not text.strip().endswith(r"\,") else text.strip()[:-2]
        found = _WRAPPED.fullmatch(text)
        if not found:
            break
        inner = next(value for value in found.groupdict().values() if value is not None)
        if found["g"] is not None and re.fullmatch(r"[A-Za-z ]{2,}", inner):
            return rf"\text{{{inner.strip()}}}"
        text = inner
    return text


def _without_commas(text: str) -> str:
    """Commas between thousands removed, but for those in brackets: (1,200) is a pair."""

    def joined(found: re.Match[str]) -> str:
        before = text[: found.start()]
        inside = len(_OPEN.findall(before)) > len(_CLOSE.findall(before))
        return found[0] if inside else found[0].replace(",", "")

    return _COMMAS.sub(joined, text)


def _shifted(number: str, exponent: int) -> str:
    """Exact decimal digits of number x 10^exponent."""
    shifted = format(Decimal(number).scaleb(exponent), "f")
    # The space keeps the digits apart from what follows the scale.
    return (shifted.rstrip("0").rstrip(".") if "." in shifted else shifted) + " "


def _repeating(found: re.Match[str]) -> str:
    whole, start, period = found[1] or "0", found[2], found[3]
    if len(found[0]) > 60:
        return found[0]
    value = int(whole) + Fraction(int(start or "0"), 10 ** len(start))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(start))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _of_base(found: re.Match[str]) -> str:
    try:
        return str(int(found[1][:200], int(found[2])))
    except ValueError:  # no base, or a digit that it has not
        return found[0]


def _balanced(bare: str, text: str) -> bool:
    """Whether brackets match, where one half of an interval may be open: [0, 1) is whole."""
    depth = 0
    for character in bare:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            return False
    braces = re.sub(r"\\[{}]", "", text)
    sets = text.count(r"\{") == text.count(r"\}")
    return depth == 0 and sets and braces.count("{") == braces.count("}")
