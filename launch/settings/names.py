"""What a wrong name was perhaps meant to be: a setting elsewhere, what a peer calls otherwise, or one spelled alike.

Imported only once there is a mistake.
"""

import difflib

from launch.peers import tables
from launch.settings.tree import Setting, by_path, generic, jobs

_ALIKE = 0.75
"""Similarity from which one name may be meant by another: `trainer` is not `tracking` (0.67)."""
_MISSPELLED = 0.85
"""Similarity from which a name is no other than one of the same section, or of all there are."""
_LONGEST_NAME = 100
"""Characters of a name that are compared."""
_MOST = 3
"""Settings that one hint names."""
_LONGEST_LIST = 240
"""Characters of a list of a section's fields."""


def hint(path: str, job: str | None = None) -> str:
    """What to say of an unknown dotted name, in brackets; `job` is the algorithm's name, where it is known."""
    section, _, last = path.rpartition(".")
    # A name that peers have is theirs, not one of ours misspelled.
    theirs = tables.plain(last) in tables.by_name()
    if not theirs and (near := nearest_name(last, fields_of(section, job), _MISSPELLED)):
        return near
    return certain_hint(path, job) or _near(path, job) or _fields(path, job)


def certain_hint(path: str, job: str | None = None) -> str:
    """The part of `hint` that is no guess by spelling; empty where nothing is known of the name."""
    name = tables.plain(path)
    parts = name.split(".")
    of_others = ""
    # From the whole name to its last part: the longest ending that is known says most.
    for start in range(len(parts)):
        ending = ".".join(parts[start:])
        entry, found = tables.by_name().get(ending), _elsewhere(ending, path, job)
        if start < len(parts) - 1:
            sure = _of_entry(entry, job) or found
        else:
            alone = entry is not None and all(by_path()[full][0].sections for full in _ending_so(ending))
            theirs = _of_entry(_of_section(parts), job) or (_of_entry(entry, job) if alone else "")
            sure = theirs or found or _of_entry(entry, job)
        if sure:
            return sure
        of_others = of_others or (_for_whom(ending) if _ending_so(ending) else "")
    if of_others:
        return of_others
    for ending in (name, parts[-1]):
        if (entry := tables.by_ending().get(ending)) and not (ending == parts[-1] and _beginning_so(path, job)):
            return _of_entry(entry, job)
    return ""


def value_hint(path: str, value: object) -> str:
    """What a peer's value of our field is here, in brackets; empty where nothing is known of it."""
    # The tables give both by one name.
    field = generic(path).replace("critic.optimizer", "policy.optimizer").replace("critic.lora", "model.lora")
    name = str(value).lower().replace(" ", "_")
    # GRPOTrainer and DPOConfig are classes of TRL.
    for word in (name, name.replace("-", "_"), name.removesuffix("trainer").removesuffix("config").rstrip("_-")):
        if ours := tables.by_value().get((field, word)):
            return f" (there is none: {ours[2:]})" if ours.startswith("- ") else f" (here: {ours})"
        if field == "algorithm.name" and word in jobs():
            return f" (here: {word})"
    return ""


def fields_of(path: str, job: str | None = None) -> list[str]:
    """Names of the fields of the section at `path`; of the sections for an empty path."""
    prefix = f"{generic(path)}." if path else ""
    found = []
    for full, items in by_path().items():
        rest = full.removeprefix(prefix)
        if full.startswith(prefix) and "." not in rest and _of_job(items, job):
            found.append(rest)
    return found


def nearest_name(word: str, names: list[str], alike: float = _ALIKE) -> str:
    """`(did you mean ...?)` for the one of `names` that is spelled like `word`; empty where none is."""
    # For difflib, `LR` and `lr` have nothing in common.
    same = [name for name in names if name.lower() == word.lower()]
    near = same or difflib.get_close_matches(word[:_LONGEST_NAME], names, 1, alike)
    return f" (did you mean {near[0]}?)" if near else ""


def _elsewhere(ending: str, path: str, job: str | None) -> str:
    """Settings of the job whose dotted name ends so."""
    found = [full for full in _ending_so(ending) if _of_job(by_path()[full], job)]
    section = path.partition(".")[0]
    inside = [full for full in found if full.startswith(f"{section}.")] or found
    plainest = sorted(inside, key=lambda full: full.count("."))  # stable: otherwise in the order of the sections
    return f" (did you mean {_either(plainest[:_MOST])}?)" if plainest else ""


def _for_whom(ending: str) -> str:
    """What to say of a field that only other algorithms have."""
    [full, *_] = _ending_so(ending)
    # `critic` is a section of its own, whose fields list no jobs.
    names = dict.fromkeys(name for item in by_path()[full] for name in item.jobs)
    return f" ({full} is a field for {', '.join(names) or 'ppo'})"


def _ending_so(ending: str) -> list[str]:
    return [full for full in by_path() if full == ending or full.endswith(f".{ending}")]


def _of_section(parts: list[str]) -> tables.Entry | None:
    """What is said of all that is below a section of a peer's, such as fsdp_config.* of any group."""
    return next((entry for part in parts[-2::-1] if (entry := tables.by_name().get(f"{part}.*"))), None)


def _of_entry(entry: tables.Entry | None, job: str | None) -> str:
    if entry is None:
        return ""
    if not entry.ours:
        return f" (there is none: {entry.note})"
    ours = [name for name in entry.ours if _of_job(by_path().get(name, ()), job)]
    if not ours and not entry.note:
        return _for_whom(entry.ours[0])
    return f" (here: {' and '.join(ours or entry.ours)}{'; ' if entry.note else ''}{entry.note})"


def _of_job(items: tuple[Setting, ...], job: str | None) -> bool:
    """Whether the field is there for the job: `algorithm` has others for each, and only ppo has a critic."""
    if not items or job not in jobs():
        return True
    if items[0].path.startswith("critic.") and job != "ppo":
        return False
    return any(not item.jobs or job in item.jobs for item in items)


def _near(path: str, job: str | None) -> str:
    """A name spelled alike: of the section, then of all settings, then of the peers'."""
    section, _, last = path.rpartition(".")
    word = tables.plain(last)
    if near := nearest_name(word, fields_of(section, job)):
        return near
    if longer := _beginning_so(path, job):
        return f" (did you mean {_either(longer[:_MOST])}?)"
    known = {full.rpartition(".")[2]: full for full in by_path() if _of_job(by_path()[full], job)}
    for names in (known, tables.by_name()):
        for name in difflib.get_close_matches(word[:_LONGEST_NAME], names, 1, _MISSPELLED):
            return certain_hint(name, job)
    return ""


def _beginning_so(path: str, job: str | None) -> list[str]:
    """Fields of a section of ours whose names begin with the last part: policy.offload_optimizer of policy.offload."""
    section, _, last = path.rpartition(".")
    names = fields_of(section, job) if section else []
    return [f"{section}.{name}" for name in names if name.startswith(f"{tables.plain(last)}_")]


def _fields(path: str, job: str | None) -> str:
    """All fields of the nearest section above that there is."""
    section = path.rpartition(".")[0]
    while section and not fields_of(section, job):
        section = section.rpartition(".")[0]
    shown = ", ".join(fields_of(section, job))
    if len(shown) > _LONGEST_LIST:
        shown = f"{shown[:_LONGEST_LIST].rpartition(',')[0]} and more, see tandem help {section}"
    return f" ({section} has {shown})" if section else f" (there are {shown})"


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
