"""Fakes of what no test machine has: a Kubernetes API server, and KubeRay's operator on it.

They speak the part of the API that `launch.kube` uses, with the server's own answers for what is refused. They show
that requests and answers are understood; not that a real cluster accepts a manifest.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

PATHS = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/v1)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?$"
)
SPEC_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
"""Fields of a RayJob's spec in KubeRay 1.7's CRD."""
Object = dict[str, Any]


class Refused(Exception):
    """An answer other than 2xx: a Status, or plain text for a path that is not served."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.details = code, reason, details

    @property
    def body(self) -> bytes:
        """What the server sends."""
        if not self.reason:
            return str(self).encode()
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code}
        return json.dumps({**status, "reason": self.reason, "message": str(self), "details": self.details}).encode()


@dataclass
class FakeKubernetes:
    """A Kubernetes API server on localhost; a context manager.

    Serves RayJobs (if `kuberay`), ConfigMaps, NetworkPolicies, pods with their logs, and events, in `namespaces`, to
    whoever has `token` and is not `forbidden` the verb and resource. Deletion honours finalizers, and takes along what
    the deleted owns.
    """

    namespaces: set[str] = field(default_factory=lambda: {"default", "tandem", "train"})
    token: str = "secret-token"
    kuberay: bool = True
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    silent: bool = False
    """Takes requests and never answers."""
    broken: int = 0
    """Requests that it will answer with 503."""
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    """By resource, namespace and name."""
    logs: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """Time and text of each line, by pod."""
    requests: list[str] = field(default_factory=list)
    """`VERB resource/name` of each request."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> "FakeKubernetes":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.silent = False  # ends the requests that wait
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self, path: Path, *, token: str | None = None, url: str | None = None) -> Path:
        """Write a kubeconfig with the contexts `development` (current, namespace train) and `production`."""
        contexts = {"development": {"namespace": "train"}, "production": {}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "development",
            "clusters": [{"name": "fake", "cluster": {"server": url or self.url}}],
            "users": [{"name": "jane", "user": {"token": token or self.token}}],
            "contexts": [
                {"name": name, "context": {"cluster": "fake", "user": "jane", **more}}
                for name, more in contexts.items()
            ],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def names(self, resource: str) -> list[str]:
        """Names of what is there, in any namespace."""
        with self.lock:
            return sorted(name for kind, _, name in self.objects if kind == resource)

    def put(self, resource: str, namespace: str, document: Object) -> Object:
        """Keep an object, as its controller would make it."""
        metadata = document["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", _stamp(time.time()))
        metadata["namespace"] = namespace
        with self.lock:
            self.objects[resource, namespace, metadata["name"]] = document
        return document

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Take an object away, and what it owns."""
        with self.lock:
            gone = self.objects.pop((resource, namespace, name), None)
            owned = [key for key, item in self.objects.items() if gone and _owner(item) == gone["metadata"]["uid"]]
            for key in owned:
                self.remove(*key)

    def answer(self, verb: str, path: str, token: str, body: Object | None) -> bytes:
        """The body of a 2xx answer; raises Refused."""
        url = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = PATHS.match(url.path)
        if self.broken:
            self.broken -= 1
            raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if token != self.token:
            raise Refused(401, "Unauthorized", "Unauthorized")
        served = ("networking.k8s.io", *(("ray.io",) if self.kuberay else ()))
        if found is None or (found["group"] and found["group"] not in served):
            raise Refused(404, "", "404 page not found\n")
        resource, namespace, name = found["resource"], found["namespace"], found["name"]
        self.requests.append(f"{verb} {resource}/{name or ''}")
        self._authorise(verb, resource + ("/log" if found["sub"] else ""), namespace, name)
        with self.lock:
            if verb == "POST":
                return json.dumps(self._create(resource, namespace, body or {}, query)).encode()
            if name is None:
                return json.dumps({"kind": "List", "items": self._list(resource, namespace, query)}).encode()
            item = self.objects.get((resource, namespace, name))
            if item is None:
                raise Refused(404, "NotFound", f'{_plural(resource)} "{name}" not found', name=name, kind=resource)
            if found["sub"]:
                return self._log(item, query)
            if verb == "PATCH":
                assert (body or {}).keys() == {"metadata"}, "an immutable ConfigMap keeps its data"
                item["metadata"].update((body or {})["metadata"])
            if verb == "DELETE":
                self._delete(resource, item, query)
            return json.dumps(item).encode()

    def _authorise(self, verb: str, resource: str, namespace: str, name: str | None) -> None:
        named = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete", "PATCH": "patch"}[verb]
        if (named, resource) in self.forbidden:
            what = f'User "jane" cannot {named} resource "{resource}" in API group "" in the namespace "{namespace}"'
            raise Refused(403, "Forbidden", f"{_plural(resource)} is forbidden: {what}", kind=resource)

    def _create(self, resource: str, namespace: str, body: Object, query: dict[str, str]) -> Object:
        name = body["metadata"]["name"]
        if namespace not in self.namespaces:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")
        if body["metadata"].get("namespace", namespace) != namespace:
            raise Refused(400, "BadRequest", "the namespace of the provided object does not match the request")
        if (resource, namespace, name) in self.objects:
            raise Refused(
                409, "AlreadyExists", f'{_plural(resource)} "{name}" already exists', name=name, kind=resource
            )
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            message = f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of ...'
            raise Refused(422, "Invalid", f'{body["kind"]} "{name}" is invalid: {message}')
        if resource == "rayjobs":
            self._check_rayjob(body, strict=query.get("fieldValidation") == "Strict")
        return self.put(resource, namespace, body)

    def _check_rayjob(self, body: Object, *, strict: bool) -> None:
        unknown = sorted(body["spec"].keys() - SPEC_FIELDS)
        if unknown and strict:
            fields = ", ".join(f'unknown field "spec.{name}"' for name in unknown)
            raise Refused(
                400, "BadRequest", f'RayJob in version "v1" cannot be handled: strict decoding error: {fields}'
            )
        limit = body["spec"].get("backoffLimit", 0)
        if not isinstance(limit, int):
            message = f'spec.backoffLimit: Invalid value: "{type(limit).__name__}": must be of type integer'
            raise Refused(422, "Invalid", f'RayJob.ray.io "{body["metadata"]["name"]}" is invalid: {message}')

    def _list(self, resource: str, namespace: str, query: dict[str, str]) -> list[Object]:
        items = [item for key, item in self.objects.items() if key[:2] == (resource, namespace)]
        for pair in filter(None, query.get("labelSelector", "").split(",")):
            key, _, value = pair.partition("=")
            items = [item for item in items if (item["metadata"].get("labels") or {}).get(key) == value]
        for pair in filter(None, query.get("fieldSelector", "").split(",")):
            path, _, value = pair.partition("=")
            items = [item for item in items if _at(item, path) == value]
        return items

    def _delete(self, resource: str, item: Object, query: dict[str, str]) -> None:
        metadata = item["metadata"]
        if metadata.get("finalizers"):
            metadata["deletionTimestamp"] = _stamp(time.time())
            item["propagation"] = query.get("propagationPolicy")
        else:
            self.remove(resource, metadata["namespace"], metadata["name"])

    def _log(self, pod: Object, query: dict[str, str]) -> bytes:
        name, container = pod["metadata"]["name"], query["container"]
        if container not in [one["name"] for one in pod["spec"]["containers"]]:
            raise Refused(400, "BadRequest", f"container {container} is not valid for pod {name}")
        if pod["status"]["phase"] == "Pending":
            waits = f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating'
            raise Refused(400, "BadRequest", waits)
        since = time.time() - float(query.get("sinceSeconds", "inf"))
        lines = [line for line in self.logs.get(name, []) if line[0] >= since]
        lines = lines[-int(query["tailLines"]) :] if "tailLines" in query else lines
        stamped = query.get("timestamps") == "true"
        return "".join(f"{_stamp(at)} {text}\n" if stamped else f"{text}\n" for at, text in lines).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # One packet for head and body: two would wait for each other (Nagle).

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                while fake.silent:
                    time.sleep(0.05)
                try:
                    if self.headers.get("Content-Type") == "application/json-patch+json" and isinstance(body, dict):
                        raise Refused(400, "BadRequest", "a JSON patch is a list of operations")
                    code, answer = 200, fake.answer(self.command, self.path, self._token(), body)
                except Refused as refused:
                    code, answer = refused.code, refused.body
                self.send_response(code)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _token(self) -> str:
                return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

            def log_message(self, format: str, *args: Any) -> None:
                pass

            do_GET = do_POST = do_PATCH = do_DELETE = _do

        return Handler


@dataclass
class FakeOperator:
    """KubeRay's operator for RayJobs of a FakeKubernetes, with the pods and the log that the cluster would make.

    A RayJob goes through `steps`, functions that get the operator and the RayJob; the last one is repeated. One that is
    being deleted goes after `stop_s`, with its pods, as if its Ray job had been stopped and its finalizer dropped.
    """

    kubernetes: FakeKubernetes
    steps: list[Callable[["FakeOperator", Object], None]]
    every_s: float = 0.05
    stop_s: float = 0.0
    """Time that the driver takes for its last checkpoint."""

    def __enter__(self) -> "FakeOperator":
        self._ended = threading.Event()
        self._done: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)

    def status(self, job: Object, **values: Any) -> None:
        """Set fields of the RayJob's status."""
        job.setdefault("status", {}).update(values)

    def pod(self, job: Object, name: str, labels: dict[str, str], *containers: str, **status: Any) -> None:
        """Make a pod, or change its status."""
        metadata = job["metadata"]
        found = self.kubernetes.objects.get(("pods", metadata["namespace"], name))
        if found is not None:
            found["status"] = {"phase": "Running", **status}
            return
        owner = {"name": metadata["name"], "uid": metadata["uid"]}
        document = {
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": container} for container in containers]},
            "status": {"phase": "Running", **status},
        }
        self.kubernetes.put("pods", metadata["namespace"], document)

    def log(self, pod: str, *lines: str) -> None:
        """Let a pod print lines."""
        for line in lines:
            self.kubernetes.logs.setdefault(pod, []).append((time.time(), line))
            time.sleep(1e-5)  # Container runtimes stamp each line, in nanoseconds.

    def _work(self) -> None:
        while not self._ended.wait(self.every_s):
            with self.kubernetes.lock:
                for (resource, _, _), item in list(self.kubernetes.objects.items()):
                    if resource == "rayjobs":
                        self._reconcile(item)

    def _reconcile(self, job: Object) -> None:
        metadata = job["metadata"]
        if "deletionTimestamp" in metadata:
            if time.time() - _seconds(metadata["deletionTimestamp"]) >= self.stop_s:
                self.kubernetes.remove("rayjobs", metadata["namespace"], metadata["name"])
            return
        metadata["finalizers"] = ["ray.io/rayjob-finalizer"]
        at = self._done.get(metadata["uid"], 0)
        self.steps[min(at, len(self.steps) - 1)](self, job)
        self._done[metadata["uid"]] = at + 1


def _stamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


def _seconds(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f000Z").replace(tzinfo=UTC).timestamp()


def _owner(item: Object) -> str | None:
    return next((one["uid"] for one in item["metadata"].get("ownerReferences") or []), None)


def _at(item: Any, path: str) -> Any:
    for part in path.split("."):
        item = (item or {}).get(part)
    return item


def _plural(resource: str) -> str:
    return f"{resource}.ray.io" if resource == "rayjobs" else resource
