"""Sizes of a run as far as the checks have learned what they rest on: batches, and memory of each process."""

from launch.checks.findings import Findings
from launch.kinds.table import job_kind
from launch.sizes.estimate import Arithmetic, Memory


def arithmetic_of(findings: Findings) -> Arithmetic:
    """Batch arithmetic; responses count with their longest length, unknown prompts with theirs."""
    return job_kind(findings.config).arithmetic(findings.rows, findings.mean_tokens)


def memory_of(findings: Findings) -> dict[str, Memory]:
    """Group -> bytes of one of its processes; empty when the model's size is unknown."""
    if findings.shape is None or findings.parameters is None:
        return {}
    return job_kind(findings.config).memory(findings.shape, findings.parameters)
