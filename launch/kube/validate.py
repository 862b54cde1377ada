"""Validation of manifests, before any cluster sees them.

First the schema (`launch/kube/schema*.py`: unknown fields, types, names, quantities), then, for documents that pass it,
what the custom resources' own rules, the operator, Kueue and Ray demand (`launch/kube/rules*.py`).
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml
from pydantic import ValidationError

from actors.config import UserError
from actors.config_nodes import is_secret
from launch.kube.config import UNPROTECTED
from launch.kube.rules_cluster import cluster_problems
from launch.kube.rules_job import job_problems
from launch.kube.rules_kueue import kueue_problems
from launch.kube.schema import ConfigMapManifest, ParsedManifest, RayClusterManifest, RayJobManifest, cluster_of
from launch.kube.schema_network import NetworkPolicyManifest
from launch.kube.schema_pod import PodSpec
from launch.kube.schema_types import ManifestPart
from launch.settings.file import BoundedLoader

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS: dict[str, type[ParsedManifest]] = {
    "RayJob": RayJobManifest,
    "RayCluster": RayClusterManifest,
    "ConfigMap": ConfigMapManifest,
    "NetworkPolicy": NetworkPolicyManifest,
}
_LARGEST_CONFIG_MAP = 2**20  # Kubernetes' own limit
_TYPES = {
    "string_type": "must be a string (quoted, if it looks like a number or a boolean)",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_too_short": "must not be empty",
}


def check_manifest_file(path: str, ray_version: str) -> str:
    """Validate all documents of a file as `manifest_problems` does, and say in a line which they are.

    What is allowed and unwise is a warning, in a line of its own after it.

    Raises:
        UserError: the file cannot be read or holds no manifest; or what is wrong with them, one line for each problem.
    """
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):  # a pipe would be waited for
        raise UserError(f"--check: must be a YAML file that can be read, got {path} (no file)")
    try:
        with Path(path).open(encoding="utf-8") as file:  # From a file, YAML's errors quote nothing.
            documents = [document for document in yaml.load_all(file, BoundedLoader) if document is not None]
    except RecursionError:
        raise UserError(f"--check: must be a YAML file that can be read, got {path} (nested too deeply)") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or no date
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(f"--check: must be a YAML file that can be read, got {path} ({reason})") from None
    if not documents:
        raise UserError(f"--check: must hold manifests, got {path} without any")
    if problems := manifest_problems(documents, ray_version):
        raise UserError(*problems)
    parsed = [_KINDS[document["kind"]].model_validate(document) for document in documents]
    names = [f"{document.kind} {document.metadata.name}" for document in parsed]
    return "\n".join([f"{path}: ok ({', '.join(names)})", *_warnings(parsed)])


def _warnings(documents: Iterable[ParsedManifest]) -> Iterator[str]:
    for document in documents:
        found = cluster_of(document)
        if found is None:
            continue
        place, name = found[0], f"{document.kind}/{document.metadata.name}"
        auth = found[1].authOptions
        if auth is None or auth.mode != "token":
            mode = "no mode" if auth is None else auth.mode
            yield f"warning: {name}/{place}.authOptions: {mode}, so {UNPROTECTED}"


def manifest_problems(documents: Sequence[Mapping[str, object]], ray_version: str) -> list[str]:
    """What is wrong with RayJobs, RayClusters, ConfigMaps and NetworkPolicies as loaded from YAML; empty if nothing is.

    Each problem is a line, `RayJob/spec.backoffLimit: must be at least 0, got -1`; with several documents the name
    stands after the kind. `ray_version`: the Ray that runs (2.60.0), which manifests and images must name.
    """
    problems: list[str] = []
    parsed: dict[int, ParsedManifest] = {}
    for index, document in enumerate(documents):
        if not isinstance(document, Mapping):
            problems.append(f"document {index + 1}: must be a mapping, got {_shown(document)}")
            continue
        prefix = _prefix(document, index if len(documents) > 1 else None)
        found = _parse(document)
        if isinstance(found, list):
            problems += [prefix + line for line in found]
            continue
        parsed[index] = found
        problems += [prefix + line for line in _rules(found, ray_version)]
    problems += _across(parsed)
    return list(dict.fromkeys(problems))


def _prefix(document: Mapping[str, object], index: int | None) -> str:
    kind = document.get("kind") or "document"
    if index is None:
        return f"{kind}/"
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{kind}/{name or index + 1}/"


def _parse(document: Mapping[str, object]) -> ParsedManifest | list[str]:
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), _KINDS, 1)
        return [f"kind: must be one of {', '.join(_KINDS)}{_hint(near)}, got {_short(kind)}"]
    # Before pydantic, which takes null wherever a field may be left out.
    nulls = [f"{path}: must have a value or be left out, got null" for path in _nulls(document, "")]
    if nulls:
        return nulls
    try:
        return _KINDS[kind].model_validate(dict(document))
    except ValidationError as error:
        return [_problem(item, document) for item in error.errors()]


def _nulls(value: object, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nulls(item, _join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nulls(item, _join(path, index))


def _problem(error: "ErrorDetails", document: Mapping[str, object]) -> str:
    # pydantic's mark of a mistake in a key; the path ends there anyway.
    location = [step for step in error["loc"] if step != "[key]"]
    path, kind, got = "", error["type"], _got(document, location, error["input"])
    for step in location:
        path = _join(path, step)
    if kind == "extra_forbidden":
        fields = _part_at(_KINDS[str(document["kind"])], location[:-1]).model_fields
        near = difflib.get_close_matches(str(location[-1]), fields, 1)
        return f"{path}: unknown field{_hint(near)}, got {got}"
    if kind == "missing":
        return f"{path}: required, got nothing"
    if kind == "value_error":
        message = str(error.get("ctx", {})["error"])
        # Validators of ours begin with a dot where a field below the path is wrong.
        message = message if message.startswith(".") else f": {message}"
        return path + message + ("" if ", got " in message else f", got {got}")
    return f"{path}: {_rule(error)}, got {got}"


def _got(document: Mapping[str, object], location: Sequence[int | str], value: object) -> str:
    """A value as messages show it: not that of a secret, by any name on the way to it or beside it."""
    part: object = document
    names = [str(step) for step in location]
    for step in location[:-1]:
        part = _below(part, step)
    if isinstance(part, Mapping):
        names.append(str(part.get("name")))
    return "a value (not shown)" if any(is_secret(name, str(value)) for name in names) else _shown(value)


def _below(part: object, step: int | str) -> object:
    if isinstance(part, list) and isinstance(step, int):
        return part[step]
    assert isinstance(part, Mapping), "pydantic names only what is there"
    return part[step]


def _rule(error: "ErrorDetails") -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return f"must be one of {', '.join(names)}{_hint(difflib.get_close_matches(str(error['input']), names, 1))}"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if kind in ("less_than", "less_than_equal"):
        # All of them are whole numbers: below 5 is at most 4.
        return f"must be at most {context['le'] if 'le' in context else context['lt'] - 1}"
    if kind == "too_short":
        return f"must have at least {context['min_length']}"
    return _TYPES.get(kind) or error["msg"]


def _part_at(part: type[ManifestPart], location: Sequence[str | int]) -> type[ManifestPart]:
    for step in location:
        if isinstance(step, str):
            # An index changes nothing: the parts of a list have one type, which `_parts` finds.
            part = next(_parts(part.model_fields[step].annotation))
    return part


def _parts(annotation: object) -> Iterator[type[ManifestPart]]:
    if isinstance(annotation, type) and issubclass(annotation, ManifestPart):
        yield annotation
    for item in get_args(annotation):
        yield from _parts(item)


def _rules(manifest: ParsedManifest, ray_version: str) -> Iterator[str]:
    if isinstance(manifest, ConfigMapManifest):
        size = sum(len(key) + len(text.encode()) for key, text in manifest.data.items())
        if size > _LARGEST_CONFIG_MAP:
            yield f"data: must be at most {_LARGEST_CONFIG_MAP} bytes in all, got {size}"
        return
    if isinstance(manifest, NetworkPolicyManifest):
        return
    if isinstance(manifest, RayJobManifest):
        yield from job_problems(manifest, ray_version)
    else:
        yield from cluster_problems(manifest.spec, "spec", manifest.metadata.annotations, ray_version, in_job=False)
    yield from kueue_problems(manifest)


def _across(documents: Mapping[int, ParsedManifest]) -> Iterator[str]:
    seen: set[tuple[str, str, str | None]] = set()
    for document in documents.values():
        identity = (document.kind, document.metadata.name, document.metadata.namespace)
        if identity in seen:
            yield f"{identity[0]}/{identity[1]}/metadata.name: must differ from the other documents', got {identity[1]}"
        seen.add(identity)
    maps = {item.metadata.name: item for item in documents.values() if isinstance(item, ConfigMapManifest)}
    for document in documents.values():
        if found := cluster_of(document):
            path, spec = found
            for place, group in spec.groups(f"{document.kind}/{document.metadata.name}/{path}").items():
                yield from _config_maps(
                    group.template.spec, f"{place}.template.spec", document.metadata.namespace, maps
                )


def _config_maps(
    pod: PodSpec, path: str, namespace: str | None, maps: Mapping[str, ConfigMapManifest]
) -> Iterator[str]:
    """ConfigMaps of the same documents that a volume names: in another namespace, or without its keys."""
    for index, volume in enumerate(pod.volumes):
        source = volume.configMap
        if source is None or source.name not in maps:
            continue
        other = maps[source.name].metadata.namespace
        if namespace and other and other != namespace:
            where = f"{path}.volumes[{index}].configMap.name"
            yield f"{where}: must be a ConfigMap of the pods' namespace ({namespace}), got {source.name} of {other}"
        for position, item in enumerate(source.items):
            if item.key not in maps[source.name].data:
                where = f"{path}.volumes[{index}].configMap.items[{position}].key"
                keys = ", ".join(maps[source.name].data)
                yield f"{where}: must be a key of ConfigMap {source.name} ({keys}), got {item.key}"


def _join(path: str, step: str | int) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", str(step)):
        return f'{path}["{step}"]'
    return f"{path}.{step}" if path else step


def _hint(near: Sequence[str]) -> str:
    return f" (did you mean {near[0]}?)" if near else ""


def _shown(value: object) -> str:
    return {dict: "a mapping", list: "a list"}.get(type(value)) or _short(value)


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
