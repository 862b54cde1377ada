"""Secrets that stand in a configuration itself, which is kept, shown and sent: refused. A variable's name is none."""

import re
from collections.abc import Iterator
from typing import Any, Protocol, TypedDict
from urllib.parse import SplitResult, parse_qsl, urlsplit

from actors.secret_text import (
    ARGUMENTS,
    VARIABLE,
    argument_is_secret,
    holds_credentials,
    holds_login,
    holds_token,
    is_reference,
    is_variable,
    masked,
    names_secret,
)
from algorithms.config import RewardConfig

_FREE_TEXT = ("alphabet", "system_prompt", "prompts", "stop")
"""Text for the model, which may well speak of addresses."""
_LABELS = ("labels", "annotations", "node_labels", "driver_labels", "node_selector")
"""What Kubernetes and Ray are given by names of others, and show to whoever may look at pods and nodes."""
_LABEL = re.compile(r"(password|passwd|passphrase|token|secret|credentials?|(api|access|private|auth)[-_.]?key)$")
_NUMBER = re.compile(r"passw|passphrase|secret|credential|api_?key", re.IGNORECASE)
"""Names of what is a secret even if it is a number."""
_ADVICE = {
    "arguments": "it can name a variable that the function reads from its environment, such as $TOKEN",
    "vllm": "vLLM and the hub's library read theirs from the environment",
    "deepspeed": "what DeepSpeed calls reads its own from the environment",
}


class EndpointValues(TypedDict):
    """`algorithms.config.RewardEndpoint` as JSON values."""

    url: str
    weight: float
    headers: dict[str, str]
    retries: int


class Described(Protocol):
    """What of a RunConfig is looked at here; by its own name it could not be named, as it asks these very rules."""

    @property
    def reward(self) -> RewardConfig: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def secret_problems(config: Described) -> list[str]:
    """One line for each secret that stands in the configuration itself; no line shows one."""
    found = list(_endpoint_secrets(config))
    values = config.model_dump(mode="json")
    # `_endpoint_secrets` has looked: a $NAME may stand within a header.
    del values["reward"]["endpoints"]
    for field, rule in _secrets(values, (), ""):
        found.append(f"{field}: {rule}, got a literal (not shown)")
    return found


def public_values(config: Described) -> dict[str, object]:
    """The configuration as JSON values, to be shown or sent: without headers that name no variable.

    No other secret is in it, as `secret_problems` has refused it.
    """
    values = config.model_dump(mode="json")
    values["reward"]["endpoints"] = public_endpoints(values["reward"]["endpoints"])
    return values


def public_endpoints(endpoints: list[EndpointValues]) -> list[EndpointValues]:
    """The same of `reward.endpoints` alone."""
    return [
        {**endpoint, "headers": {name: _public_header(value) for name, value in endpoint["headers"].items()}}
        for endpoint in endpoints
    ]


def _public_header(value: str) -> str:
    return value if is_reference(value) else "(not shown)"


def plain_http_warnings(config: Described) -> list[str]:
    """One line for each endpoint whose headers name variables that would cross a network unencrypted."""
    found = []
    for index, endpoint in enumerate(config.reward.endpoints):
        used = sorted({name for value in endpoint.headers.values() for name in VARIABLE.findall(value)})
        parts = _address(endpoint.url)
        if used and parts and parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
            rule = f"sends {', '.join(used)} unencrypted to another machine (https keeps it secret on the way)"
            found.append(f"reward.endpoints.{index}.url: {rule}, got {masked(endpoint.url)}")
    return found


def _address(url: str) -> SplitResult | None:
    """Its parts; None of what is no address, which is told where addresses are checked."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_this_machine(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost") or host == "::1" or host.startswith("127.")


def _secrets(value: object, path: tuple[str, ...], owner: str, secret: bool = False) -> Iterator[tuple[str, str]]:
    """Dotted names of secrets with their rules. `owner`: which of ARGUMENTS the value is part of; `secret`: a name
    around it says that it is one."""
    if isinstance(value, dict):
        for name, item in value.items():
            # The value decides with the name: of `key: $NAME` nothing is secret.
            text = item if isinstance(item, str) else ""
            told = bool(owner) and (secret or argument_is_secret(name, text))
            told = told or (path[-1:] != () and path[-1] in _LABELS and _label_is_secret(name))
            yield from _secrets(item, (*path, name), owner or (name if name in ARGUMENTS else ""), told)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(item, (*path, str(index)), owner, secret)
    elif _is_secret(value, path, secret):
        advice = _ADVICE.get(owner, "configurations are kept and shown; programs read theirs from the environment")
        yield ".".join(path), f"must hold no secret ({advice})"


def _label_is_secret(name: str) -> bool:
    """Whether a label or annotation holds a secret, as its last word says; agent-inject-secret-x says where one is."""
    return _LABEL.search(name.lower()) is not None


def _is_secret(value: object, path: tuple[str, ...], secret: bool) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):  # true is an int for Python
        return secret and any(_NUMBER.search(name) for name in path)
    if not isinstance(value, str) or not value or is_variable(value):
        return False
    told_of = any(name in _FREE_TEXT for name in path)
    return secret or holds_token(value) or (holds_login(value) and not told_of)


def _endpoint_secrets(config: Described) -> Iterator[str]:
    for index, endpoint in enumerate(config.reward.endpoints):
        field = f"reward.endpoints.{index}"
        for name, value in endpoint.headers.items():
            literal = names_secret(name) and not VARIABLE.search(value)
            if literal or holds_credentials(value):
                rule = "must name a variable of the environment, such as $TOKEN, got a literal (not shown)"
                yield f"{field}.headers.{name}: {rule}"
        if not (parts := _address(endpoint.url)):
            continue
        # ?api_key=...: many services take it there.
        query = [name for name, value in parse_qsl(parts.query) if names_secret(name)]
        if "@" in parts.netloc or query or holds_token(endpoint.url):
            from algorithms.rewards.endpoint import shown_address  # takes time, which only a mistake needs

            what = f"literal {query[0]}" if query else "user and password" if "@" in parts.netloc else "token"
            rule = f"must hold no {what} (a header with a $NAME keeps it out of the configuration)"
            where = shown_address(endpoint.url)
            yield f"{field}.url: {rule}, got {where if not holds_token(where) else 'an address (not shown)'}"
