"""The configuration of a run as dotted fields, and how two of them differ."""

from pathlib import Path
from typing import Any

from actors.secret_text import masked_value
from launch.kinds.table import KINDS
from launch.page.files import Below
from launch.page.rows import as_json, whole_number

_LARGEST = 2**22
_DEEPEST = 20


def read_config(below: Below, directory: Path) -> dict[str, Any]:
    """What config.json holds, without secrets; nothing where there is none that can be read."""
    try:
        found = masked_value(as_json(below.read(directory / "config.json", _LARGEST)))
    except (FileNotFoundError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def dotted_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Field -> value: `{"policy": {"ranks": 1}}` gives `{"policy.ranks": 1}`; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    _flatten(config, "", found, 0)
    return found


def _flatten(value: Any, name: str, found: dict[str, Any], depth: int) -> None:
    if isinstance(value, dict) and value and depth < _DEEPEST:
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), found, depth + 1)
    elif name:
        found[name] = value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"field", "ours", "theirs"}` of each dotted field that differs, in order; None for what one of them lacks."""
    return [
        {"field": field, "ours": ours.get(field), "theirs": theirs.get(field)}
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)  # null is what a setting is that is not there
    ]


def job_title(config: dict[str, Any]) -> str:
    """What kind of job it is, in words; empty where it does not say."""
    name = _at(config, "algorithm", "name")
    kind = KINDS.get(name) if isinstance(name, str) else None
    return kind.title if kind else str(name or "")[:80]


def model_of(config: dict[str, Any]) -> str:
    """Which model is trained."""
    if path := _at(config, "model", "path"):
        return str(path)[:500]
    family = _at(config, "model", "init", "family")
    return f"new {family}"[:80] if family else ""


def steps_of_config(config: dict[str, Any]) -> int | None:
    """How many steps there are to be; None where epochs give them."""
    return whole_number(_at(config, "algorithm", "steps"))


def name_of(config: dict[str, Any], directory: Path) -> str:
    """What the run is called."""
    return str(_at(config, "run", "name") or directory.name)[:200]


def _at(config: Any, *names: str) -> Any:
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config
