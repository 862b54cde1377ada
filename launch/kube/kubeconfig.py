"""A connection to one namespace of a Kubernetes API server, by the official client; its errors are one line each.

Answers are plain dictionaries: the client's own models would refuse what a newer server adds. The package `kubernetes`
is an extra, imported only here.
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from actors.config import UserError
from launch.jobs.call_deadline import DeadlinePassed, within
from launch.kube.objects import Document, Event, KubeObject, Pod, RayJob

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, CustomObjectsApi, NetworkingV1Api
    from kubernetes.client.exceptions import ApiException
    from urllib3 import BaseHTTPResponse

CONNECT_S, READ_S = 5, 8  # seconds
_SLOW_S = 2
"""Time beyond READ_S in which an answer that has begun must end, in seconds."""
_GROUP, _VERSION, _RAYJOBS = "ray.io", "v1", "rayjobs"
_PARTS = {"ConfigMap": ("configmaps", "config_map"), "NetworkPolicy": ("networkpolicies", "network_policy")}
"""Kind -> resource, and its name in the client's methods."""
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_INSTALL_OPERATOR = (
    "helm install kuberay-operator kuberay-operator --version 1.7.0 --repo https://ray-project.github.io/kuberay-helm"
)


class KubeUnreachable(UserError):
    """The API server does not answer, or says that it cannot now: another try may succeed."""


@dataclass(frozen=True, slots=True)
class KubeApi:
    """One namespace of one cluster. Every method raises UserError, KubeUnreachable if another try may help.

    A request has CONNECT_S seconds to connect and READ_S to be answered. What is asked for and absent is None; that
    KubeRay or the namespace is missing is an error.
    """

    core: "CoreV1Api"
    """The client's CoreV1Api."""
    custom: "CustomObjectsApi"
    """The client's CustomObjectsApi."""
    networking: "NetworkingV1Api"
    """The client's NetworkingV1Api."""
    namespace: str
    context: str | None
    """Of the kubeconfig; None inside a pod."""

    @property
    def server(self) -> str:
        """Its URL."""
        return self.core.api_client.configuration.host

    def rayjob(self, name: str) -> RayJob | None:
        """One RayJob."""
        return self._custom("get", "get_namespaced_custom_object", name)

    def rayjobs(self, labels: str = "") -> list[RayJob]:
        """RayJobs with these labels (a selector such as `a=b,c`; default: all)."""
        return self._items(self._custom("list", "list_namespaced_custom_object", label_selector=labels))

    def create_rayjob(self, document: Document) -> RayJob:
        """The RayJob as the server keeps it; fields that the server does not know are refused, not dropped."""
        made: RayJob | None = self._custom(
            "create", "create_namespaced_custom_object", document, field_validation="Strict"
        )
        if made is None:
            raise UserError(f"kubernetes: the API server at {self.server} must create a RayJob, got 404")
        return made

    def delete_rayjob(self, name: str) -> None:
        """Begin to delete a RayJob; it is there until its cluster's pods have ended."""
        # Foreground: the RayJob stays until what it owns is gone, so that its absence tells of its pods.
        self._custom("delete", "delete_namespaced_custom_object", name, propagation_policy="Foreground")

    def part(self, document: Document) -> KubeObject | None:
        """What has the kind and name of a ConfigMap or NetworkPolicy."""
        return self._part("get", "read", document, document["metadata"]["name"], self.namespace)

    def create_part(self, document: Document) -> None:
        """Create a ConfigMap or NetworkPolicy."""
        self._part("create", "create", document, self.namespace, document)

    def delete_part(self, document: Document) -> None:
        """Delete what has the kind and name of a ConfigMap or NetworkPolicy, if it is there."""
        self._part("delete", "delete", document, document["metadata"]["name"], self.namespace)

    def own_part(self, document: Document, owner: RayJob) -> None:
        """Let a ConfigMap or NetworkPolicy be deleted with its owner."""
        metadata = owner["metadata"]
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],  # by which the server goes: a RayJob of the same name is another owner
        }
        change = {"metadata": {"ownerReferences": [reference]}}
        self._part("patch", "patch", document, document["metadata"]["name"], self.namespace, change)

    def pods(self, labels: str) -> list[Pod]:
        """Pods with these labels, in the order of their creation."""
        found = self._core("list", "pods", "list_namespaced_pod", self.namespace, label_selector=labels)
        pods: list[Pod] = self._items(found)
        # The API writes all times alike, in UTC: in this form they sort as texts.
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def warnings(self, name: str) -> list[str]:
        """Messages of the warnings about an object, the latest last."""
        selector = f"involvedObject.name={name},type=Warning"
        found = self._core("list", "events", "list_namespaced_event", self.namespace, field_selector=selector)
        events: list[Event] = self._items(found)
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return [event.get("message") or "" for event in events]

    def log(self, pod: str, container: str, *, since_s: int | None, tail: int | None) -> str:
        """A container's log, each line after its time and a blank; empty before it starts and when it is gone."""
        options = {"since_seconds": since_s, "tail_lines": tail}
        given = {key: value for key, value in options.items() if value is not None}
        text = self._ask(
            "get",
            "pods/log",
            self.core,
            "read_namespaced_pod_log",
            pod,
            self.namespace,
            container=container,
            timestamps=True,
            **given,
        )
        return (text or b"").decode("utf-8", "replace")

    def _core(self, verb: str, resource: str, method: str, *arguments: object, **options: object) -> Any:
        return self._object(self._ask(verb, resource, self.core, method, *arguments, **options))

    def _part(self, verb: str, method: str, document: Document, *arguments: object) -> Any:
        resource, name = _PARTS[document["kind"]]
        api = self.networking if document["kind"] == "NetworkPolicy" else self.core
        return self._object(self._ask(verb, resource, api, f"{method}_namespaced_{name}", *arguments))

    def _custom(self, verb: str, method: str, *arguments: object, **options: object) -> Any:
        where = (_GROUP, _VERSION, self.namespace, _RAYJOBS)
        return self._object(self._ask(verb, _RAYJOBS, self.custom, method, *where, *arguments, **options))

    def _object(self, answer: bytes | None) -> Any:
        # What JSON holds has no type: the public methods above say what the API promises, and nobody else calls this.
        if answer is None:
            return None
        try:
            values = json.loads(answer)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            start = " ".join(answer[:80].decode("utf-8", "replace").split()) or "nothing"
            raise UserError(f"kubernetes: the API server at {self.server} must answer with a JSON object, got {start}")
        return values

    def _items(self, answer: Mapping[str, object] | None) -> list[Any]:
        items = (answer or {}).get("items")
        if not isinstance(items, list):
            got = f"fields {', '.join(answer)[:80]}" if answer else "nothing"
            raise UserError(f"kubernetes: the API server at {self.server} must list items, got {got}")
        return items

    def _ask(
        self, verb: str, resource: str, api: object, method: str, *arguments: object, **options: object
    ) -> bytes | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

        where = f"kubernetes: the API server at {self.server}"
        # Unparsed: with _preload_content the client would build its models, which refuse what a newer server adds.
        call: Callable[..., BaseHTTPResponse] = getattr(api, method)
        options |= {"_preload_content": False, "_request_timeout": (CONNECT_S, READ_S)}
        try:
            # The client's deadlines are for connecting and for each read; this one is for the whole answer.
            return within(READ_S + _SLOW_S, lambda: call(*arguments, **options).data)
        except ApiException as error:
            return self._absent(error, verb, resource)
        except DeadlinePassed:
            raise KubeUnreachable(f"{where} must end its answer within {READ_S + _SLOW_S:g} s, got a part") from None
        except ReadTimeoutError:
            raise KubeUnreachable(f"{where} must answer within {READ_S} s, got nothing") from None
        except NewConnectionError as error:
            raise KubeUnreachable(f"{where} must take connections, got {_cause(error)}") from None
        except ConnectTimeoutError:
            raise KubeUnreachable(f"{where} must take a connection within {CONNECT_S} s, got nothing") from None
        except HTTPError as error:
            raise KubeUnreachable(f"{where} must answer, got {_cause(error)}") from None

    def _absent(self, error: "ApiException", verb: str, resource: str) -> None:
        """Return for a thing that is simply not there (any more, or yet); raise the one line for everything else."""
        status = _status(error)
        message = " ".join(str((status and status.message) or error.reason or "").split())
        if error.status == 404 and status is not None and status.about == "namespaces":
            name = self.namespace
            raise UserError(f"namespace: must exist in the cluster, got {name} (kubectl create namespace {name})")
        # A path that nobody serves is answered in plain text: the server does not know the kind.
        if error.status == 404 and resource == _RAYJOBS and status is None:
            raise UserError(
                f"kubernetes: KubeRay must be installed in the cluster, got no rayjobs ({_INSTALL_OPERATOR})"
            )
        # A container that has not begun is an error, too, which only its text tells from others.
        if error.status == 404 or (error.status == 400 and resource == "pods/log" and "waiting to start" in message):
            return
        raise self._refusal(error.status or 0, f"{verb} {resource} in namespace {self.namespace}", message)

    def _refusal(self, code: int, what: str, message: str) -> UserError:
        where = f"kubernetes: the API server at {self.server}"
        if code == 401:
            whose = f"context {self.context}" if self.context else "this pod's service account"
            return UserError(f"{where} must know the user of {whose}, got 401 at {what}: {message}")
        if code == 403:
            return UserError(f"kubernetes: the user must be allowed to {what}, got 403: {message}")
        if code == 0:  # The client's way to report TLS.
            return UserError(f"{where} must have a trusted certificate, got {message}")
        if code == 429 or code >= 500:
            return KubeUnreachable(f"{where} must {what}, got {code}: {message}")
        return UserError(f"{where} must {what}, got {code}: {message}")


def connect_kube(namespace: str | None, context: str | None) -> KubeApi:
    """Read the kubeconfig (KUBECONFIG, else ~/.kube/config; inside a pod without one its service account).

    `namespace` defaults to the context's, then `default`; `context` to the kubeconfig's current one. Sends nothing.

    Raises:
        UserError: the package is missing, there is no such configuration or context, or the pod has no token.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        missing = "none" if error.name == "kubernetes" else f"one that lacks {error.name}"
        how = f"{sys.executable} -m pip install 'kubernetes>=37,<38'; `make setup` includes it"
        raise UserError(f"--kube: needs the package kubernetes, got {missing} ({how})") from None
    settings = client.Configuration()
    settings.retries = False  # type: ignore[assignment]  # urllib3's three tries would make four deadlines of one.
    # KUBECONFIG may name several files, which the client merges.
    path = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    if not any(os.path.exists(part) for part in path.split(os.pathsep)):
        if "KUBERNETES_SERVICE_HOST" not in os.environ:  # Kubernetes sets it in all pods
            raise UserError(f"kubeconfig: must exist, got no file {path} (KUBECONFIG names another)")
        try:
            config.load_incluster_config(client_configuration=settings)
        except (config.ConfigException, OSError, ValueError) as error:
            rule = "must exist, or this pod have its service account's token and certificate"
            raise UserError(f"kubeconfig: {rule}, got no file {path}; {_cause(error)}") from None
        used, chosen = _SERVICE_ACCOUNT.read_text() if _SERVICE_ACCOUNT.exists() else None, None
    else:
        chosen, used = _context(path, context)
        try:
            config.load_kube_config(config_file=path, context=chosen, client_configuration=settings)
        except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"kubeconfig: {path} must be valid, with context {chosen}, got {_cause(error)}") from None
    if not _is_server(settings.host):
        raise UserError(
            f"kubeconfig: {path} must name an http(s) server, such as https://10.0.0.1:6443, got {settings.host}"
        )
    api = client.ApiClient(settings)
    found = namespace or used or "default"
    apis = client.CoreV1Api(api), client.CustomObjectsApi(api), client.NetworkingV1Api(api)
    return KubeApi(*apis, found, chosen)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False


def _context(path: str, wanted: str | None) -> tuple[str, str | None]:
    """The context to use, and the namespace that it names."""
    from kubernetes import config
    from yaml import YAMLError

    try:
        known, current = config.list_kube_config_contexts(path)
    except RecursionError:
        raise UserError(
            f"kubeconfig: {path} must be valid, with a current context, got one nested too deeply"
        ) from None
    except (config.ConfigException, YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"kubeconfig: {path} must be valid, with a current context, got {_cause(error)}") from None
    contexts = {str(item["name"]): item.get("context") for item in known if isinstance(item, dict)}
    name = wanted or str(current["name"])
    if name not in contexts:
        near = difflib.get_close_matches(name, contexts, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"context: must be one of {', '.join(sorted(contexts))}, got {name}{hint}")
    content = contexts[name]
    return name, content.get("namespace") if isinstance(content, dict) else None


@dataclass(frozen=True, slots=True)
class _Status:
    """What a Status object says of a refusal."""

    message: str
    about: str
    """The kind of thing that is missing: `namespaces`, or the resource."""


def _status(error: "ApiException") -> _Status | None:
    """The server's Status object; None when the answer is not one, as from a path that it does not serve."""
    try:
        status = json.loads(error.body or "")
    except ValueError:
        return None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        return None
    return _Status(str(status.get("message") or ""), str((status.get("details") or {}).get("kind") or ""))


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    # urllib3 writes its connection and the host before the reason.
    return text.rpartition(": ")[2] if "object at 0x" in text or "host=" in text else text or type(error).__name__
