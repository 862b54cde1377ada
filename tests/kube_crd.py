"""Validation by KubeRay's own CRDs: their schema made strict, and their CEL rules; core kinds by Kubernetes' schema.

The CRDs lie beside the repository, not in it: without them `problems_by_crd` skips the test that calls it.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared/kuberay"
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
KUBERNETES = "1.37"


def problems_by_crd(document: dict[str, Any]) -> list[str]:
    """What an API server with the CRDs of KubeRay 1.7 would refuse in a document, `path: message`."""
    kind = document.get("kind")
    if not isinstance(kind, str) or not isinstance(document.get("apiVersion"), str):
        return ["apiVersion and kind must be strings"]
    if kind not in FILES:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{_path(error.path)}: {error.message}"]
        except kubernetes_validate.SchemaNotFoundError:
            return [f"kind: there is no {kind} in {document['apiVersion']}"]
        return []
    validator, schema = _validator(kind)
    found = [f"{_path(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document)]
    return found or list(_rules(schema, document, ""))


@functools.cache
def _validator(kind: str) -> tuple[Any, dict[str, Any]]:
    path = FOLDER / FILES[kind]
    if not path.exists():
        pytest.skip("KubeRay's CRDs are not beside the repository")
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    [version] = [item for item in crd["spec"]["versions"] if item["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # ObjectMeta is not in CRDs.
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    strict["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    return jsonschema.Draft202012Validator(strict), schema


def _strict(schema: Any) -> Any:
    """A JSON schema that says what an API server does with `fieldValidation=Strict`."""
    if not isinstance(schema, dict):
        return schema
    made = {name: value for name, value in schema.items() if not name.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    if isinstance(schema.get("items"), dict):
        made["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(schema["additionalProperties"])
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
        # The server fills in defaults before it validates.
        defaulted = {name for name, value in schema["properties"].items() if "default" in value}
        made["required"] = [name for name in schema.get("required", []) if name not in defaulted]
    return made


def _rules(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, item in value.items():
            if inner := schema.get("properties", {}).get(name):
                yield from _rules(inner, item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(schema.get("items", {}), item, f"{path}[{index}]")


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _path(steps: Any) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
