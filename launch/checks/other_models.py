"""Models beside the policy: each is looked at where it is here, and told of where the run reads it later."""

from collections.abc import Callable
from pathlib import Path

from actors.models.hub_cache import cached_snapshot, is_complete, is_hub_id, is_offline, not_cached
from launch.checks.data_checks import is_elsewhere
from launch.checks.findings import Findings
from launch.config import RunConfig


def check_other_model(findings: Findings, path: str, field: str, check: Callable[[RunConfig, Path, str], None]) -> None:
    """Check a model beside the policy, unless it is on the hub or elsewhere."""
    directory = Path(path)
    if is_elsewhere(findings, field, path):
        return
    with findings.collecting():
        if is_hub_id(path):
            directory = cached_snapshot(path)
            if directory is None or not is_complete(directory):
                say_it_is_loaded(findings, field, path, None, f"does not hold {'its weights' if directory else 'it'}")
                return
        findings.aside.call(check, findings.config, directory, field)  # aside, as it reads a tokenizer


def say_it_is_loaded(findings: Findings, field: str, path: str, revision: str | None, lacks: str) -> None:
    """Warn that a model of the hub is read by the run; raises UserError where the hub may not be asked."""
    if is_offline() and not findings.elsewhere:
        raise not_cached(path, revision, field, lacks)
    findings.warnings.append(f"{field}: {path} is read from the hub when the run starts, not checked here")
