"""A good ConfigMap, RayJob and RayCluster, and how tests change them."""

import copy
import functools
import re
from typing import Any

import yaml

RAY = "2.60.0"
DELETE = object()
"""As a new value: remove the field."""

_POD = """
  metadata:
    labels: {app.kubernetes.io/part-of: tandem}
    annotations: {example.com/why: the first run}
  spec:
    restartPolicy: Never
    terminationGracePeriodSeconds: 360
    serviceAccountName: tandem
    automountServiceAccountToken: false
    priorityClassName: training
    imagePullSecrets: [{name: registry}]
    nodeSelector: {cloud.example.com/gpu: h200}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
    securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]}]
      podAntiAffinity:
        preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 10
            podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: tandem}}}
    topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
    containers:
      - name: ray-node
        image: registry.example.com:5000/tandem:0.1.0-ray2.60.0
        imagePullPolicy: IfNotPresent
        workingDir: /opt/tandem
        ports: [{containerPort: 8265, name: dashboard}]
        env:
          - {name: HF_HOME, value: /shared/huggingface}
          - {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "330"}
          - {name: WANDB_API_KEY, valueFrom: {secretKeyRef: {name: tandem, key: wandb, optional: true}}}
          - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        envFrom: [{configMapRef: {name: more, optional: true}}]
        resources:
          requests: {cpu: "8", memory: 64Gi, nvidia.com/gpu: "4"}
          limits: {memory: 64Gi, nvidia.com/gpu: "4"}
        volumeMounts:
          - {name: shared, mountPath: /shared}
          - {name: shared, mountPath: /opt/tandem/outputs, subPath: outputs}
          - {name: config, mountPath: /etc/tandem, readOnly: true}
          - {name: shm, mountPath: /dev/shm}
        livenessProbe: {httpGet: {path: /api/healthz, port: dashboard}, periodSeconds: 5, failureThreshold: 120}
        readinessProbe: {exec: {command: [ray, status]}, periodSeconds: 5}
        lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    initContainers:
      - name: own-volume
        image: busybox:1.37
        command: [chown, "1000", /shared]
        volumeMounts: [{name: shared, mountPath: /shared}]
    volumes:
      - {name: shared, persistentVolumeClaim: {claimName: tandem}}
      - {name: config, configMap: {name: demo-config, items: [{key: run.yaml, path: run.yaml}]}}
      - {name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}
"""
_CLUSTER = f"""
rayVersion: {RAY}
authOptions: {{mode: token, secretName: tandem-token}}
headServiceAnnotations: {{example.com/visible: "no"}}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams: {{num-cpus: "0", dashboard-host: 0.0.0.0}}
workerGroupSpecs:
  - groupName: policy
    replicas: 2
    minReplicas: 2
    maxReplicas: 2
    numOfHosts: 1
    labels: {{tandem/group: policy}}
    rayStartParams: {{object-store-memory: "1000000000"}}
    resources: {{CPU: "8"}}
  """
_JOB = """
entrypoint: python -m launch run /etc/tandem/run.yaml
submissionMode: K8sJobMode
runtimeEnvYAML: |
  env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "330"}
entrypointNumCpus: 1
entrypointResources: '{"policy": 0.01}'
backoffLimit: 3
activeDeadlineSeconds: 86400
preRunningDeadlineSeconds: 3600
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: 600
submitterConfig: {backoffLimit: 1}
metadata: {run: demo}
"""


def config_map() -> dict[str, Any]:
    """The run's configuration."""
    metadata = {"name": "demo-config", "labels": {"app": "tandem"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"run.yaml": "run: {name: demo}\n"}}


def network_policy() -> dict[str, Any]:
    """The run's peers, and the world."""
    peers = [{"podSelector": {"matchLabels": {"app": "tandem"}}}]
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": {"app": "tandem"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": 8265}]}],
        "egress": [
            {"ports": [{"protocol": "UDP", "port": 53}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}, *peers]},
        ],
    }
    metadata = {"name": "demo-network", "labels": {"app": "tandem"}}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def ray_job() -> dict[str, Any]:
    """A RayJob with one worker group and most fields."""
    spec = _parsed(_JOB) | {"submitterPodTemplate": _parsed(_POD), "rayClusterSpec": _cluster()}
    metadata = {"name": "demo", "namespace": "training", "labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def ray_cluster() -> dict[str, Any]:
    """A RayCluster whose workers are autoscaled, and whose head keeps its state in Redis."""
    spec = _cluster() | {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    spec["autoscalerOptions"] |= {"idleTimeoutSeconds": 120, "resources": {"limits": {"cpu": "500m"}}}
    spec["workerGroupSpecs"][0] |= {"minReplicas": 0, "idleTimeoutSeconds": 60, "priority": 2}
    password = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    spec["gcsFaultToleranceOptions"] = {"redisAddress": "redis:6379", "redisPassword": password}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "demo"}, "spec": spec}


def _cluster() -> dict[str, Any]:
    spec = _parsed(_CLUSTER)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        group["template"] = _parsed(_POD)
    return spec


def _parsed(text: str) -> dict[str, Any]:
    return copy.deepcopy(_load(text))


@functools.cache
def _load(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


def edit(document: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a path such as `spec.volumes[0].name`; one past the end of a list appends."""
    *parents, last = steps(path)
    for step in parents:
        document = document[step]
    if value is DELETE:
        del document[last]
    elif isinstance(document, list) and last == len(document):
        document.append(value)
    else:
        document[last] = value


def steps(path: str) -> list[Any]:
    """Keys and indices of a path, in which keys with dots are quoted in brackets."""
    found = re.findall(r'\["([^"]+)"\]|\[(\d+)\]|([^.\[]+)', path)
    return [int(index) if index else quoted or plain for quoted, index, plain in found]
