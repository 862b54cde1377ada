"""What tells of a secret in a name or a text, and a text without it: for configurations, messages and links."""

import re

_NAME = re.compile(
    r"authori[sz]ation|authentication|\bauth\b|_auth|key|token|secret|cookie|passw|credential|signature|^sig$",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"tokeni[sz]|token_?id|keyword|(bos|eos|pad|unk|stop|start|end|mask|sep|cls)_token", re.IGNORECASE
)
"""Parts of names that are no secrets, although `_NAME` finds one in them."""
_SERVICE_KEY = re.compile(
    r"(api|access|secret|private|auth|account|encryption|signing|hub|hf|wandb|openai)[-_]?key", re.IGNORECASE
)
_KEY = re.compile("keys?", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s]*@")
_PASSWORD = re.compile(r"://[^/\s@:]*:[^/\s]*@|https?://[^/?#\s]*@", re.IGNORECASE)
_QUERY = re.compile(r"([?&;#])([^?&;#=\s]+)=([^&;#\s'\"]+)")
_SCHEME = re.compile(r"\b([Bb]earer|Basic|ApiKey)(\s+)(?!\$|\*\*\*)[^\s'\",}\]]+")
_CREDENTIALS = re.compile(r"\s*(bearer|basic|token|digest|apikey)\s+(?!\$)\S", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}|wandb_v1_\w{20,}"
    r"|npm_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}|(?:xox[abeprs]|xapp)-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|(?:nvapi|xai)-[\w-]{20,}|gsk_[A-Za-z0-9]{30,}|[rs]k_(?:live|test)_\w{20,}|pypi-[\w-]{40,}|dapi[0-9a-f]{32}"
    r"|(?:Account|SharedAccess)Key=[A-Za-z0-9+/=]{20,}|eyJ[\w-]{8,2000}\.eyJ[\w-]{8,2000}\.[\w-]*)"
    # A key up to its end, or to that of a text that was cut.
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.)*?"
    r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
"""How the tokens of well-known services look."""
# Digits and letters: words and numbers alone are none.
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9+/=]{20,}")
VARIABLE = re.compile(r"\$[A-Za-z_]\w*")
_HIDDEN = "***"
ARGUMENTS = ("arguments", "vllm", "deepspeed")
"""Settings that hold what functions and libraries are given, by names of theirs."""
FREE = (*ARGUMENTS, "headers")
"""Settings whose names are not ours."""


def names_secret(name: str) -> bool:
    """Whether a header, parameter or argument of this name may hold a secret: X-API-Key, but not stop_token."""
    # What is harmless is cut out first: of stop_token_ids, nothing is left that tells of a secret.
    return _NAME.search(_HARMLESS.sub("", name)) is not None


def argument_is_secret(name: str, value: str = "") -> bool:
    """Whether an argument holds a secret: sort_key is a name like others, unless its value looks random."""
    certain = _SERVICE_KEY.search(name) is not None or names_secret(_KEY.sub("", name))
    return certain or (looks_random(value) and names_secret(name))


def looks_random(value: str) -> bool:
    """Whether a text is long, of letters and digits alone, as keys are; names of models have hyphens and dots."""
    return _RANDOM.fullmatch(value) is not None


def is_variable(value: str) -> bool:
    """Whether a text is the name of a variable and nothing else: $TOKEN."""
    return VARIABLE.fullmatch(value) is not None


def is_reference(value: str) -> bool:
    """Whether the value of a header is a variable's, with a scheme at most: Bearer $TOKEN."""
    return re.fullmatch(rf"(\w+ +)?{VARIABLE.pattern}", value) is not None


def holds_token(text: str) -> bool:
    """Whether a text holds what looks like a token of a well-known service, or a private key."""
    return _TOKEN.search(text) is not None


def holds_login(text: str) -> bool:
    """Whether a text holds a URL with a password, or with a parameter whose name tells of a secret."""
    if "://" not in text:
        return False
    return _PASSWORD.search(text) is not None or any(
        names_secret(name) and not is_variable(value) for _, name, value in _QUERY.findall(text)
    )


def holds_credentials(header: str) -> bool:
    """Whether a header's value is a scheme with literal credentials (Bearer, Basic), or looks like a key."""
    return _CREDENTIALS.match(header) is not None or looks_random(header) or holds_token(header) or holds_login(header)


def masked(text: str) -> str:
    """The text with *** for what looks like a secret: in URLs, behind Bearer and Basic, tokens of known services."""
    text = _TOKEN.sub(_HIDDEN, text)
    if "://" in text:
        text = _QUERY.sub(_without_value, _USER.sub(f"{_HIDDEN}@", text))
    return _SCHEME.sub(rf"\1\2{_HIDDEN}", text)


def _without_value(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={_HIDDEN}" if names_secret(found[2]) and not is_variable(found[3]) else found[0]


def masked_value(value: object, *, secret: bool = False) -> object:
    """A plain value with all secrets masked, also those that only the name above them tells of."""
    if isinstance(value, dict):
        return {
            name: masked_value(item, secret=secret or name == "headers" or argument_is_secret(str(name)))
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [masked_value(item, secret=secret) for item in value]
    if isinstance(value, str):
        return value if is_reference(value) else _HIDDEN if secret else masked(value)
    return value


def without_secrets_of(value: object, text: str) -> str:
    """A message about the setting `value`, without those texts in it that stand in headers, or in mappings that others
    name (see FREE), below a name that tells of a secret."""
    pairs = [(value, masked_value(value), False)]
    while pairs:
        given, public, free = pairs.pop()
        if isinstance(given, dict) and isinstance(public, dict):
            pairs += [(item, public[name], free or name in FREE) for name, item in given.items()]
        elif isinstance(given, list) and isinstance(public, list):
            pairs += [(item, shown, free) for item, shown in zip(given, public, strict=True)]
        elif free and isinstance(given, str) and given and public == _HIDDEN:
            text = text.replace(given, _HIDDEN)
    return text
