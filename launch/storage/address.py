"""Where storage may be: a URL of a kind that is known, whose package is there, and without credentials."""

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

from actors.config_base import UserError

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "file": None}
"""Kind of storage -> the package that fsspec needs for it."""


def storage_problem(url: str) -> str | None:
    """Why nothing can be stored under a URL, in words that follow its setting, without what may be a secret; None when
    that is not known before it is tried.

    Example: storage_problem("ftp://host/runs") is "must begin with s3://, gs:// or file://, got ftp://host/runs".
    """
    if any(not char.isprintable() or char.isspace() for char in url):
        return f"must be a URL without spaces, got {url[:80]!a}"
    kind, separator, rest = url.partition("://")
    if kind == "memory":
        return f"must outlive the run, and memory:// is the memory of one process, got {url[:80]}"
    try:
        parts = urlsplit(url)
    except ValueError:
        return "must be a URL, got something else (not shown)"
    if "@" in parts.netloc or parts.query or parts.fragment:
        rule = (
            "must hold no user, password, ? or #: credentials are taken from the environment or the storage's own files"
        )
        return f"{rule}, got a URL with one (not shown)"
    if not separator or kind not in _PACKAGES:
        return f"must begin with s3://, gs:// or file://, got {url[:80]}"
    if ".." in rest.split("/"):
        return f"must be a path without .., got {url[:80]}"
    if kind == "file":
        return (
            None if rest.startswith("/") and rest.strip("/") else f"must be absolute, file:///shared/x, got {url[:80]}"
        )
    return None if parts.netloc else f"must name a bucket, {kind}://BUCKET/PATH, got {url[:80]}"


def check_package(field: str, url: str) -> None:
    """Raise UserError, with `field`, unless what reads and writes this kind of storage is installed."""
    package = _PACKAGES[url.partition("://")[0]]
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"{field}: needs the package {package}, which is not installed (pip install {package}), got {url}"
        )


def check_apart(url: str, run: Path) -> None:
    """Raise UserError where the copies of a run would lie in the directory of the run, or it among them."""
    kind, _, path = url.partition("://")
    if kind != "file":
        return
    stored, own = (Path(path) / run.name).resolve(), run.resolve()
    if stored.is_relative_to(own) or own.is_relative_to(stored):
        raise UserError(f"run.storage: must be apart from the run's directory, {run}, got {url}")
