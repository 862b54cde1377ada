"""A verb's command line, parsed; its mistakes are one line each, in our own words.

Imports only the standard library: help must appear at once.
"""

import argparse
import difflib
import re
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

from launch.verbs.arguments import UsageError, Verb

_MAY_BE_EMPTY = ("query_prompt", "passage_prompt")
"""Texts of which none at all is a choice."""
_OTHER_WORDS = {
    "train": "run",
    "start": "run",
    "launch": "run",
    "validate": "check",
    "generate": "chat",
    "preview": "data",
    "kill": "stop",
    "cancel": "stop",
    "ps": "list",
    "ls": "list",
    "jobs": "list",
    "kubernetes": "k8s",
    "log": "logs",
}
"""What other programs call a verb."""
_SPELLED_ALIKE = 0.7
"""Similarity from which a word may be a misspelt verb: `bogus` is not `logs` (0.67)."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{_in_our_words(message)} (see {self.prog} --help)")


def parse_verb(name: str, verb: Verb, rest: list[str]) -> argparse.Namespace:
    """The arguments of a verb; raises UsageError, and SystemExit after printing help."""
    parser = _Parser(
        prog=f"tandem {name}",
        description=verb.summary,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a misspelt option must not pass for a longer one
    )
    verb.declare(parser)
    _check_options(parser, rest)
    # Intermixed: options may stand between CONFIG and the settings.
    arguments, extra = parser.parse_known_intermixed_args(rest)
    if extra:
        raise UsageError(
            f"{extra[0][:80]}: must be left out, as {parser.prog} takes no such argument, got {extra[0][:80]!r}"
        )
    for action in parser._actions:
        # An empty text comes of a shell variable that is not set.
        if getattr(arguments, action.dest, None) == "" and action.dest not in _MAY_BE_EMPTY:
            raise UsageError(f"{_shown(action)}: must not be empty, got ''")
    return arguments


def unknown_verb(name: str, verbs: Iterable[str]) -> UsageError:
    """The mistake of a first word that is no verb, with the nearest one."""
    known = list(verbs)
    near = difflib.get_close_matches(name.lower(), [*known, "--help", "--version"], 1, _SPELLED_ALIKE) or [
        verb for verb in [_OTHER_WORDS.get(name.lower())] if verb in known
    ]
    if name.endswith((".yaml", ".yml", ".json")):
        near = [f"run {name}"]
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UsageError(f"verb: must be one of {', '.join(known)}{hint}, got {name[:80] or repr(name)}")


def _check_options(parser: argparse.ArgumentParser, rest: list[str]) -> None:
    """Raise UsageError for the first option that there is not, or that is given twice: argparse would take the last
    one without a word, and complain of something that is missing before it names the misspelt one."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    if any(action.dest == "overrides" for action in parser._actions):
        _refuse_settings([word for word in rest if _is_option(word) and word.partition("=")[0] not in known])
    given = [word.partition("=")[0] for word in rest[: rest.index("--") if "--" in rest else None] if _is_option(word)]
    for option in given:
        if option not in known and option[:2] not in known:  # -f1, too: a short option with its value behind it
            near = difflib.get_close_matches(option.lower(), [item for item in known if item.startswith("--")], 1)
            hint = f" (did you mean {near[0]}?)" if near else f" (see {parser.prog} --help)"
            raise UsageError(f"{option[:80]}: unknown option of {parser.prog}{hint}")
    counts = Counter(_shown(known[option]) for option in given if option in known and known[option].dest != "help")
    for option, count in counts.items():
        if count > 1:
            raise UsageError(f"{option}: must be given once, got it {count} times")


def _refuse_settings(options: list[str]) -> None:
    """Raise UsageError for options that are settings of ours, or of another project."""
    if not options:
        return
    from launch.settings.names import certain_hint

    found = []
    for word in options:
        name = word.partition("=")[0]
        if hint := certain_hint(name.lstrip("-")):
            found.append(f"{name[:80]}: no option, but a setting{hint}, to be written field=value, got {word[:80]}")
    if found:
        raise UsageError(*found)


def _is_option(word: str) -> bool:
    """As argparse sees it: no negative number, and no text with blanks."""
    return len(word) > 1 and word[0] == "-" and " " not in word and not re.fullmatch(r"-\d+|-\d*\.\d+", word)


def _shown(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def _in_our_words(message: str) -> str:
    """argparse's sentence as field, rule and value."""
    if found := re.fullmatch(r"the following arguments are required: (.*)", message):
        names = [name for name in found[1].split(", ") if name != "a.b=c"]  # none of these is an answer, too
        example = " a YAML file, such as configs/own-task.yaml," if names[0] == "CONFIG" else ""
        return f"{', '.join(names)}: required,{example} got nothing"
    message = re.sub(r"^argument (?:-\w/)?", "", message)
    if found := re.fullmatch(r"(\S+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
        choices = re.sub(r"'", "", found[3])
        near = difflib.get_close_matches(found[2].lower(), choices.split(", "), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{found[1]}: must be one of {choices}{hint}, got {found[2]}"
    if found := re.fullmatch(r"(\S+): expected (one|\d+) arguments?", message):
        count = "a value" if found[1] and found[2] == "one" else f"{found[2]} values"
        return f"{found[1]}: needs {count}, got {'nothing' if found[2] == 'one' else 'another number of them'}"
    if found := re.fullmatch(r"(\S+): ignored explicit argument '(.*)'", message):
        return f"{found[1]}: takes no value, got {found[2]}"
    return message
