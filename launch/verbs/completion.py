"""Completion in bash, zsh and fish by argcomplete: verbs, options, files, settings and their values.

A shell runs `tandem` each time that somebody presses Tab: nothing heavy may be imported here.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping

from launch.verbs.arguments import Verb
from launch.verbs.setting_words import job_of, next_words

Completer = Callable[..., Iterable[str]]
_FILES = ("FILE", "DIR", "RUN", "MODEL", "CONFIG")
"""Beginnings of what arguments are called that name something on the disk."""


def script(shell: str) -> str:
    """What a shell must read to complete the words of `tandem`."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["tandem"], shell=shell)


def complete(verbs: Mapping[str, Verb]) -> None:
    """Tell the shell that has asked by its variables what could come next, and end the process."""
    import argcomplete
    from argcomplete.completers import SuppressCompleter

    # Options only where a dash was typed: settings are what is mostly wanted. And nothing where nobody knows what
    # comes: a number, a text, a name.
    argcomplete.autocomplete(_parser(verbs), always_complete_options=False, default_completer=SuppressCompleter())


def _parser(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """All verbs in one parser, each argument with what completes it."""
    parser = argparse.ArgumentParser(prog="tandem")
    parser.add_argument("--version", action="store_true")
    below = parser.add_subparsers(metavar="VERB")
    for name, verb in verbs.items():
        own = below.add_parser(name, help=verb.summary, allow_abbrev=False)
        verb.declare(own)
        for action in own._actions:
            if completer := _completer(action, verbs):
                action.completer = completer  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def _completer(action: argparse.Action, verbs: Mapping[str, Verb]) -> Completer | None:
    """What completes an argument; None where its choices do, or nothing."""
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    if action.choices is not None:
        return None
    if action.dest == "config":
        return FilesCompleter(("yaml", "yml", "json"))
    if action.dest == "overrides":
        return _settings
    if action.dest == "topic":
        return lambda prefix, **_: [*verbs, *(word.rstrip("=.") for word in next_words(prefix))]
    named = action.metavar if isinstance(action.metavar, str) else ""
    if action.dest in ("run", "directory") or named.startswith("DIR"):
        return DirectoriesCompleter()
    return FilesCompleter() if named.startswith(_FILES) else None


def _settings(prefix: str, parsed_args: argparse.Namespace, **_: object) -> dict[str, str]:
    config = getattr(parsed_args, "config", None)
    return next_words(prefix, job_of(config) if config else None)
