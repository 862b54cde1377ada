"""The verbs of clusters, each for a Ray cluster or, with --kube, for Kubernetes: which function does what was asked.

Imports only the standard library at the top, as the command line does.
"""

import argparse
import sys
from typing import TYPE_CHECKING, TypedDict

from launch.verbs.arguments import UsageError

if TYPE_CHECKING:
    from launch.config import RunConfig


def on_submit(arguments: argparse.Namespace) -> int:
    """Start a job; with --wait, end as it does. Raises UserError, UsageError."""
    if arguments.config == "sweep":
        raise UsageError("CONFIG: must be that of a run, as `tandem sweep` itself starts those of a sweep, got sweep")
    _check_place(arguments, "id")  # before the configuration is read, which takes longer
    from launch.config import load
    from launch.run.restarts import restarts_of

    config = load(arguments.config, arguments.overrides)
    restarts_of(config, arguments.retries)  # what is wrong with it is said here, and not by the job
    if not arguments.kube:
        # Each verb imports what it needs, as `requests` or the Kubernetes client would delay all others.
        from launch.jobs.submit import submit_job

        return submit_job(
            config,
            address=arguments.address,
            run_id=arguments.id,
            wait=arguments.wait,
            as_json=arguments.json,
            code=not arguments.no_code,
            retries=arguments.retries,
        )
    if arguments.retries is not None:  # the entrypoint there is no place for text of the command line
        config = load(arguments.config, [*arguments.overrides, f"run.max_restarts={arguments.retries}"])
    told = _assumed_on_kubernetes(config, code=not arguments.no_code)
    from launch.kube.client import kube_submit

    return kube_submit(config, **_kube(arguments), wait=arguments.wait, as_json=arguments.json, told=told)


def on_status(arguments: argparse.Namespace) -> int:
    """Print how a job is. Raises UserError, UsageError."""
    _check_place(arguments)
    if arguments.kube:
        from launch.kube.client import kube_status

        return kube_status(arguments.id, **_kube(arguments), as_json=arguments.json)
    from launch.jobs.verbs import job_status

    return job_status(arguments.id, address=arguments.address, as_json=arguments.json)


def on_logs(arguments: argparse.Namespace) -> int:
    """Print or follow a job's log. Raises UserError, UsageError."""
    _check_place(arguments)
    if arguments.kube:
        from launch.kube.client import kube_logs

        return kube_logs(arguments.id, **_kube(arguments), follow=arguments.follow, tail=arguments.tail)
    from launch.jobs.verbs import job_logs

    return job_logs(arguments.id, address=arguments.address, follow=arguments.follow, tail=arguments.tail)


def on_stop(arguments: argparse.Namespace) -> int:
    """Stop a job and wait for its end. Raises UserError, UsageError."""
    _check_place(arguments)
    if arguments.kube:
        from launch.kube.client import kube_stop

        return kube_stop(arguments.id, **_kube(arguments), timeout_s=arguments.timeout)
    from launch.jobs.verbs import stop_job

    return stop_job(arguments.id, address=arguments.address, timeout_s=arguments.timeout)


def on_list(arguments: argparse.Namespace) -> int:
    """Print a cluster's jobs. Raises UserError, UsageError."""
    _check_place(arguments, "all")
    if arguments.kube:
        from launch.kube.client import kube_list

        return kube_list(**_kube(arguments), as_json=arguments.json)
    from launch.jobs.verbs import show_jobs

    return show_jobs(address=arguments.address, everything=arguments.all, as_json=arguments.json)


def on_k8s(arguments: argparse.Namespace) -> int:
    """Print manifests, or validate those of a file. Raises UserError, UsageError."""
    if arguments.check is not None:
        if given := arguments.config or arguments.kind or ("--no-code" if arguments.no_code else None):
            raise UsageError(f"--check: must stand alone, without CONFIG and --kind, got {given}")
        from launch.kube.config import ray_version
        from launch.kube.validate import check_manifest_file

        print(check_manifest_file(arguments.check, ray_version()))
        return 0
    if arguments.config is None:
        raise UsageError("CONFIG: required without --check, got nothing (see tandem k8s --help)")
    from launch.config import load

    config = load(arguments.config, arguments.overrides)
    told = _assumed_on_kubernetes(config, code=not arguments.no_code)
    from launch.kube.render import render

    manifests = render(config, arguments.kind or "rayjob")  # what is wrong is told alone
    for line in told:
        print(line, file=sys.stderr)
    print(manifests, end="")
    return 0


def _check_place(arguments: argparse.Namespace, *ray_only: str) -> None:
    """A job is on a Ray cluster or on Kubernetes: refuse the options of the other one."""
    wrong = ("address", *ray_only) if arguments.kube else ("namespace", "context")
    for name in wrong:
        if getattr(arguments, name):
            rule = "is not for --kube" if arguments.kube else "needs --kube"
            raise UsageError(f"--{name}: {rule}, got {getattr(arguments, name)}")


class _Place(TypedDict):
    namespace: str | None
    context: str | None


def _kube(arguments: argparse.Namespace) -> _Place:
    return {"namespace": arguments.namespace, "context": arguments.context}


def _assumed_on_kubernetes(config: "RunConfig", *, code: bool) -> list[str]:
    """Warnings of what is assumed about a run on Kubernetes; raises UserError with what is wrong with it."""
    from launch.checks.check import preflight
    from launch.kube.assumptions import render_warnings

    found = preflight(config, elsewhere=True, code=code) + render_warnings(config)
    return [f"warning: {warning}" for warning in found]
