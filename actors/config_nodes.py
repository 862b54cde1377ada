"""Types of settings about nodes and processes: environment variables, Ray labels, custom resources."""

import re
from typing import Annotated

from pydantic import AfterValidator, PositiveFloat

_SECRET = re.compile(
    r"((^|_)(KEY|TOKEN|PASS|PWD|PAT|CREDENTIALS?|AUTHORIZATION)(?=_|$)|PASSWORD|PASSWD|PASSPHRASE|APIKEY|SECRET)"
    r"(?!S?_(PATH|FILE|DIR|IDS)$)"
)
_PASSWORD_IN_URL = re.compile(r"://[^/\s]*:[^/\s]*@")
_SET_ELSEWHERE = {
    "OMP_NUM_THREADS": "threads_per_rank and threads_per_engine set it",
    "PYTHONPATH": "the code comes from the working directory",
    "RAY_ADDRESS": "the cluster is joined already",
    "RAY_JOB_STOP_WAIT_TIME_S": "cluster.stop_wait_s sets it",
    "CUDA_VISIBLE_DEVICES": "Ray sets it",
    "TANDEM_LOG": "it is Tandem's own",
}


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable holds a secret: by its name (HF_TOKEN, but not HF_TOKEN_PATH or STOP_TOKEN_IDS), or as a URL
    with a password."""
    return _SECRET.search(name.upper()) is not None or _PASSWORD_IN_URL.search(value) is not None


def _check_environment(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name} must be a name of letters, digits and _, got {name!r}")
        if name in _SET_ELSEWHERE:
            raise ValueError(f"{name} must be left out, as {_SET_ELSEWHERE[name]}, got {variables[name]!r}")
        if is_secret(name):
            raise ValueError(f"{name} must come from the environment of the nodes: configurations are kept and shown")
        if _PASSWORD_IN_URL.search(variables[name]):
            raise ValueError(f"{name} must hold no URL with a password: configurations are kept and shown")
    return variables


Environment = Annotated[dict[str, str], AfterValidator(_check_environment)]
"""Environment variables; secrets are refused."""


_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = re.compile(rf"({_LABEL}/)?{_LABEL}")
_LABEL_EXPRESSION = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(, ?{_LABEL})*\)")


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(f"{name} must be the name of a label: letters, digits, '-', '_' and '.', got {name!r}")
        if not _LABEL_EXPRESSION.fullmatch(value):
            raise ValueError(f"{name} must be a label's value, or !value, in(a, b), !in(a, b), got {value!r}")
    return labels


NodeLabels = Annotated[dict[str, str], AfterValidator(_check_labels)]
"""Ray labels that a node must have, and expressions for their values."""


def _check_resources(resources: dict[str, float]) -> dict[str, float]:
    for name in resources:
        if name.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
            raise ValueError(f"{name} must be left out, as it is no custom resource, got {resources[name]:g}")
    return resources


NodeResources = Annotated[dict[str, PositiveFloat], AfterValidator(_check_resources)]
"""Custom Ray resources, by name."""
