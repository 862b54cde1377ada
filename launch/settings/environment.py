"""Which variables of cluster.env a process on this machine takes over, and who is sent the hub's token then."""

from collections.abc import Mapping

_WITHOUT_CODE = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE")
"""What says where files are, and no more."""
_OF_WORKERS = ("LD_LIBRARY_PATH", "HOME", "XDG_CONFIG_HOME")
"""Where programs look for code and settings of theirs; the workers get them with their start."""
_WHOM_TO_TRUST = ("HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Which server is the hub, and which certificates prove it."""
NO_TOKEN = "HF_HUB_DISABLE_IMPLICIT_TOKEN"
"""Lets the hub's library send no token unless it is told to."""


def taken_here(variables: Mapping[str, str], environment: Mapping[str, str], *, code: bool) -> dict[str, str]:
    """What the driver, and with it `check`, takes over of cluster.env; without `code` only where the hub's cache is.

    `environment` is the user's own, as for `with_token_kept`.
    """
    if not code:
        return {name: value for name, value in variables.items() if name in _WITHOUT_CODE}
    taken = {name: value for name, value in variables.items() if name not in _OF_WORKERS}
    return with_token_kept(taken, environment)


def with_token_kept(variables: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables, and the one by which the hub's library sends no token by itself, where they name another server
    as the hub, or other certificates, than the user's own `environment`: the token is for the hub that the user knows.
    """
    # What cluster.env does not set stays as the user has it.
    others = any(variables.get(name, environment.get(name)) != environment.get(name) for name in _WHOM_TO_TRUST)
    return {**variables, NO_TOKEN: "1"} if others else dict(variables)
