"""`tandem help`: what a setting means, takes and is by default, and which jobs read it; and docs/settings.md."""

from actors.config import UserError
from launch.peers import tables
from launch.settings import names
from launch.settings.readers import read_with, readers_text
from launch.settings.tree import Setting, by_path, default_text, generic, range_text, settings, type_text

_MOST_FOUND = 3


def help_text(topic: str) -> str:
    """The help for a dotted name, the last part of one, or a name that another project uses.

    Raises:
        UserError: nothing is known of the name; its line says what is spelled alike.
    """
    path = generic(topic)
    if path in by_path():
        return _of_setting(path)
    ending = [full for full in by_path() if full.endswith(f".{topic}")]
    if ending:
        shown = "\n\n".join(_of_setting(full) for full in ending[:_MOST_FOUND])
        more = ", ".join(ending[_MOST_FOUND:])
        return shown + (f"\n\nalso: {more}" if more else "")
    if entry := tables.by_name().get(tables.plain(topic)) or tables.by_ending().get(tables.plain(topic)):
        return _of_peers_name(topic, entry)
    raise UserError(f"help: must be a setting, a section or a verb{names.hint(topic)}, got {topic[:80]}")


def is_setting(topic: str) -> bool:
    """Whether a dotted name is one of the settings or sections."""
    return generic(topic) in by_path()


def _of_setting(path: str) -> str:
    return "\n\n".join(_of_one(item, _below(item)) for item in by_path()[path])


def _below(setting: Setting) -> list[Setting]:
    """Fields of a section, or of an item of a list or mapping of sections."""
    if not setting.sections:
        return []
    prefixes = (f"{setting.path}.", f"{setting.path}.N.", f"{setting.path}.NAME.")
    of = set(setting.jobs)
    return [
        item
        for item in settings()
        if any(item.path.startswith(start) and "." not in item.path[len(start) :] for start in prefixes)
        and item.path.rpartition(".")[2] not in ("N", "NAME")  # these stand for the items themselves
        and (not of or of & set(item.jobs))
    ]


def _of_one(setting: Setting, below: list[Setting]) -> str:
    lines = [setting.path, f"  {setting.text}" if setting.text else ""]
    facts = {"type": type_text(setting), "range": range_text(setting), "default": default_text(setting)}
    if setting.path == "algorithm" or (below and not setting.required and facts["default"] == "{}"):
        facts = {}
    facts["read by"] = ", ".join(setting.jobs) if setting.jobs else readers_text(setting.path)
    if "grpo" in setting.jobs and (choices := read_with(setting.path)):
        facts["read by"] = facts["read by"].replace("grpo", f"grpo (with {choices})")
    width = max(map(len, facts))
    lines += [f"  {name:{width}}  {fact}" for name, fact in facts.items() if fact]
    if below:
        prefix = below[0].path.rpartition(".")[0]
        shown = dict.fromkeys((item.path.rpartition(".")[2], _sentence(item)) for item in below)
        longest = max(len(name) for name, _ in shown)
        lines += [f"  fields of {prefix}:", *(f"    {name:{longest}}  {text}" for name, text in shown)]
    return "\n".join(line for line in lines if line)


def _sentence(setting: Setting) -> str:
    """The first sentence of the text, and whose field it is where only some algorithms have it."""
    # Named only where not all of the seven kinds of jobs have the field.
    text = setting.text.partition(". ")[0].rstrip(".") + "."
    return f"{text} ({', '.join(setting.jobs)})" if setting.jobs and len(setting.jobs) < 7 else text


def _of_peers_name(topic: str, entry: tables.Entry) -> str:
    if not entry.ours:
        return f"{topic}: there is none: {entry.note}"
    first = f"{topic}: here {' and '.join(entry.ours)}{'; ' if entry.note else ''}{entry.note}"
    return "\n\n".join([first, *(_of_setting(path) for path in entry.ours if path in by_path())])


def settings_markdown() -> str:
    """docs/settings.md: every setting in a table of its section."""
    parts = [_HEAD]
    for name in dict.fromkeys(item.path.partition(".")[0] for item in settings()):
        [section, *_] = by_path()[name]
        parts.append(f"## {name}\n\n{section.text} Read by {readers_text(name)}.\n")
        rows = [item for item in settings() if item.path.startswith(f"{name}.")]
        parts.append("| setting | type | default | read by | meaning |\n|---|---|---|---|---|")
        parts += [_row(item) for item in rows]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _row(setting: Setting) -> str:
    bounds = range_text(setting)
    kind = f"{type_text(setting)}, {bounds}" if bounds else type_text(setting)
    who = ", ".join(setting.jobs) if setting.jobs and len(setting.jobs) < 7 else readers_text(setting.path)
    default = "" if setting.required else f"`{default_text(setting)}`"
    cells = [f"`{setting.path}`", kind, default or "required", who, setting.text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_HEAD = """# All settings

Made by `tandem help --markdown > docs/settings.md` from the settings themselves; `tandem help SETTING` shows one.
N stands for the number of an item in a list (from 0), NAME for a name that you choose. A setting that a job does not
read is refused there, unless it has its default.
"""
