"""Mistakes to make in good manifests: what is changed, where the problem must be reported, and what it must say."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.kube_manifests import DELETE

C = "spec.rayClusterSpec"
H = f"{C}.headGroupSpec"
W = f"{C}.workerGroupSpecs[0]"
HP, HC = f"{H}.template.spec", f"{H}.template.spec.containers[0]"
WP, WC = f"{W}.template.spec", f"{W}.template.spec.containers[0]"
GPU = '["nvidia.com/gpu"]'


class Seed(NamedTuple):
    """One mistake: edits by path, then the path and a part of the message that must be reported."""

    edits: Mapping[str, Any]
    path: str
    says: str


def rules(*conditions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Edits that give a job deletion rules instead of its shutdown."""
    listed = [{"policy": policy, "condition": condition} for policy, condition in conditions]
    return {
        "spec.deletionStrategy": {"deletionRules": listed},
        "spec.shutdownAfterJobFinishes": False,
        "spec.ttlSecondsAfterFinished": DELETE,
        "metadata.labels": {},
    }


SELECTED = {C: DELETE, "spec.clusterSelector": {"ray.io/cluster": "dev"}, "spec.backoffLimit": 0, "metadata.labels": {}}
AUTOSCALED = {f"{C}.enableInTreeAutoscaling": True, "metadata.labels": {}}
K8S_AUTH = {"spec.authOptions": {"mode": "token", "enableK8sTokenAuth": True}}
POLICIES = {"onSuccess": {"policy": "DeleteNone"}, "onFailure": {"policy": "DeleteSelf"}}
SCALER = '["kueue.x-k8s.io/'

JOB_SEEDS = [
    # Typos
    Seed({"knd": "x"}, "knd", "unknown field (did you mean kind?)"),
    Seed({"metadata.lables": {}}, "metadata.lables", "did you mean labels?"),
    Seed({"spec.submisionMode": "HTTPMode"}, "spec.submisionMode", "did you mean submissionMode?"),
    Seed(
        {"spec.shutdownAfterJobFinish": True}, "spec.shutdownAfterJobFinish", "did you mean shutdownAfterJobFinishes?"
    ),
    Seed({f"{C}.workerGroupSpec": []}, f"{C}.workerGroupSpec", "did you mean workerGroupSpecs?"),
    Seed({f"{C}.tlsOptions": {}}, f"{C}.tlsOptions", "unknown field"),
    Seed({f"{W}.minReplica": 1}, f"{W}.minReplica", "did you mean minReplicas?"),
    Seed({f"{WP}.tolerations[0].efect": "x"}, f"{WP}.tolerations[0].efect", "did you mean effect?"),
    Seed({f"{WC}.ports[0].containerport": 1}, f"{WC}.ports[0].containerport", "did you mean containerPort?"),
    Seed({f"{WC}.env[2].valueFrom.secretKeyRef.nam": "x"}, f"{WC}.env[2].valueFrom.secretKeyRef.nam", "name?"),
    Seed({f"{WP}.volumes[2].emptyDir.sizelimit": "1Gi"}, f"{WP}.volumes[2].emptyDir.sizelimit", "sizeLimit?"),
    Seed({f"{WC}.livenessProbe.httpget": {}}, f"{WC}.livenessProbe.httpget", "did you mean httpGet?"),
    Seed({f"{H}.rayStartParams.num-cpu": "0"}, f"{H}.rayStartParams.num-cpu", "did you mean num-cpus?"),
    Seed({"kind": "RayJobs"}, "kind", "must be one of RayJob, RayCluster, ConfigMap, NetworkPolicy (did"),
    Seed({"apiVersion": "ray.io/v1alpha1"}, "apiVersion", "must be one of ray.io/v1 (did"),
    # Missing fields and wrong types
    Seed({"metadata.name": DELETE}, "metadata.name", "required, got nothing"),
    Seed({f"{C}.rayVersion": DELETE}, f"{C}.rayVersion", "required"),
    Seed({f"{C}.rayVersion": None}, f"{C}.rayVersion", "must have a value or be left out, got null"),
    Seed({f"{H}.template.spec.containers": []}, f"{H}.template.spec.containers", "must have at least 1"),
    Seed({"spec.backoffLimit": "3"}, "spec.backoffLimit", "must be a whole number, got 3"),
    Seed({"spec.shutdownAfterJobFinishes": "yes"}, "spec.shutdownAfterJobFinishes", "must be true or false"),
    Seed({"spec.entrypointNumCpus": "1"}, "spec.entrypointNumCpus", "must be a number"),
    Seed({f"{W}.minReplicas": "2"}, f"{W}.minReplicas", "must be a whole number"),
    Seed({f"{H}.rayStartParams.num-cpus": 0}, f"{H}.rayStartParams.num-cpus", "must be a string (quoted"),
    Seed({f"{WC}.env[0].value": 1}, f"{WC}.env[0].value", "must be a string (quoted"),
    Seed({f"{WC}.env": {}}, f"{WC}.env", "must be a list"),
    Seed({f"{WP}.nodeSelector": []}, f"{WP}.nodeSelector", "must be a mapping"),
    Seed({f"{WP}.securityContext": []}, f"{WP}.securityContext", "must be a mapping"),
    Seed({f"{C}.rayVersion": ""}, f"{C}.rayVersion", "must not be empty"),
    # Values
    Seed({f"{WC}.resources.limits.memory": "5Gigs"}, f"{WC}.resources.limits.memory", "such as 8Gi, got 5Gigs"),
    Seed({f"{WC}.resources.requests.cpu": 0.5}, f"{WC}.resources.requests.cpu", "must be a quantity"),
    Seed({f"{WC}.resources.requests.memry": "1Gi"}, f"{WC}.resources.requests.memry", "must be cpu, memory"),
    Seed({f"{WC}.resources.requests.memory": "65Gi"}, f"{WC}.resources.requests.memory", "exceed the limit (64Gi)"),
    Seed({f"{WC}.resources.limits{GPU}": "0.5"}, f"{WC}.resources.limits{GPU}", "must be a whole number"),
    Seed(
        {f"{WC}.resources.limits{GPU}": "0", f"{WC}.resources.requests{GPU}": "0"},
        f"{WC}.resources.limits{GPU}",
        "must be a whole number from 1, got 0",
    ),
    Seed({f"{WC}.resources.requests{GPU}": "8"}, f"{WC}.resources.requests{GPU}", "must equal the limit (4)"),
    Seed({f"{WC}.resources.limits{GPU}": DELETE}, f"{WC}.resources.limits", "must have nvidia.com/gpu"),
    Seed({f"{WC}.ports[0].containerPort": 0}, f"{WC}.ports[0].containerPort", "must be at least 1"),
    Seed({f"{WC}.ports[0].containerPort": 70000}, f"{WC}.ports[0].containerPort", "must be at most 65535"),
    Seed({f"{WC}.livenessProbe.httpGet.port": True}, f"{WC}.livenessProbe.httpGet.port", "port's number or its name"),
    Seed({f"{WC}.livenessProbe.httpGet.port": 0}, f"{WC}.livenessProbe.httpGet.port", "must be from 1 to 65535"),
    Seed({f"{WC}.livenessProbe.httpGet.port": "A B"}, f"{WC}.livenessProbe.httpGet.port", "at most 15"),
    Seed({f"{WC}.livenessProbe.successThreshold": 2}, f"{WC}.livenessProbe.successThreshold", "must be 1, got 2"),
    Seed(
        {f"{WC}.startupProbe": {"tcpSocket": {"port": 1}, "successThreshold": 3}},
        f"{WC}.startupProbe.successThreshold",
        "must be 1, got 3",
    ),
    Seed({f"{WC}.livenessProbe.httpGet.port": "web"}, f"{WC}.livenessProbe.httpGet.port", "or the name of a port"),
    Seed({"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "must be at least 1, got 0"),
    Seed({"spec.preRunningDeadlineSeconds": 2**31}, "spec.preRunningDeadlineSeconds", "must be at most 2147483647"),
    Seed({"spec.backoffLimit": -1}, "spec.backoffLimit", "must be at least 0, got -1"),
    Seed({"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "must be at least 0"),
    Seed({f"{W}.numOfHosts": 0}, f"{W}.numOfHosts", "must be at least 1"),
    Seed({"spec.submissionMode": "HttpMode"}, "spec.submissionMode", "InteractiveMode (did you mean HTTPMode?)"),
    Seed({"spec.managedBy": "me"}, "spec.managedBy", "ray.io/kuberay-operator, kueue.x-k8s.io/multikueue"),
    Seed({f"{WC}.image": "tandem:1 -ray2.60.0"}, f"{WC}.image", "must be an image without blanks"),
    Seed({f"{WC}.imagePullPolicy": "Sometimes"}, f"{WC}.imagePullPolicy", "Always, IfNotPresent, Never"),
    Seed({f"{WP}.tolerations[0].effect": "NoScheduling"}, f"{WP}.tolerations[0].effect", "did you mean NoSchedule?"),
    Seed({"metadata.name": "a" * 48}, "metadata.name", "at most 47 characters"),
    Seed({"metadata.name": "1run"}, "metadata.name", "a lower-case letter, then"),
    Seed({"metadata.labels": {"a b": "x"}}, 'metadata.labels["a b"]', "must be a label's key"),
    Seed({"metadata.labels": {"A_B/c": "x"}}, 'metadata.labels["A_B/c"]', "the name of a domain"),
    Seed({"metadata.labels.run": "-x"}, "metadata.labels.run", "at most 63 characters"),
    Seed({f"{W}.groupName": "Policy"}, f"{W}.groupName", "lower-case letters, digits and '-'"),
    Seed({f"{W}.groupName": "headgroup"}, f"{W}.groupName", "must not be headgroup"),
    Seed({f"{WC}.env[0].name": "1 A"}, f"{WC}.env[0].name", "no digit first"),
    # Parts that contradict themselves
    Seed({f"{WC}.env[0].name": "POD_NAME"}, f"{WC}.env", "must have every name once, got POD_NAME 2 times"),
    Seed({f"{WC}.env[2].value": "x"}, f"{WC}.env[2]", "must have value or valueFrom, got both"),
    Seed(
        {f"{WC}.env[2].valueFrom.configMapKeyRef": {"name": "a", "key": "b"}}, f"{WC}.env[2].valueFrom", "exactly one"
    ),
    Seed({f"{WC}.env[0].name": "HF_TOKEN"}, f"{WC}.env[0].value", "must come from a Secret"),
    Seed({f"{WC}.env[0].value": "redis://:b@c"}, f"{WC}.env[0].value", "HF_HOME must come from a Secret"),
    Seed({f"{WC}.env[0].name": "MYPASSWORD"}, f"{WC}.env[0].value", "must come from a Secret"),
    Seed({f"{WC}.env[0].name": "DB_PASS"}, f"{WC}.env[0].value", "must come from a Secret"),
    Seed(
        {f"{WC}.securityContext.privileged": True},
        f"{WC}.securityContext.allowPrivilegeEscalation",
        "must not be false with privileged",
    ),
    Seed({f"{WP}.volumes[0].emptyDir": {}}, f"{WP}.volumes[0]", "got emptyDir and persistentVolumeClaim"),
    Seed({f"{WP}.volumes[0].persistentVolumeClaim": DELETE}, f"{WP}.volumes[0]", "exactly one of emptyDir, persi"),
    Seed({f"{WP}.volumes[1].name": "shm"}, f"{WP}.volumes", "must have every name once"),
    Seed({f"{WP}.tolerations[0].value": "x"}, f"{WP}.tolerations[0].value", "left out with operator Exists"),
    Seed({f"{WP}.tolerations[0]": {"value": "x"}}, f"{WP}.tolerations[0].key", "required unless"),
    Seed({f"{WP}.tolerations[0].tolerationSeconds": 5}, f"{WP}.tolerations[0].effect", "must be NoExecute"),
    Seed(
        {f"{WP}.topologySpreadConstraints[0].labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        f"{WP}.topologySpreadConstraints[0].labelSelector.matchExpressions[0].values",
        "must be values with operator In",
    ),
    Seed({f"{WC}.volumeMounts[3].name": "shn"}, f"{WC}.volumeMounts[3].name", "(shared, config, shm), got shn"),
    Seed({f"{WC}.volumeMounts[1].mountPath": "/shared"}, f"{WC}.volumeMounts", "must have every mountPath once"),
    Seed({f"{WC}.volumeMounts[0].mountPath": "shared"}, f"{WC}.volumeMounts[0].mountPath", "an absolute path"),
    Seed({f"{WC}.volumeMounts[1].subPath": "../x"}, f"{WC}.volumeMounts[1].subPath", "a path inside the volume"),
    Seed({f"{WP}.volumes[2].emptyDir.medium": DELETE}, f"{WP}.volumes[2]", "with medium Memory for /dev/shm"),
    Seed({f"{WP}.volumes[2].emptyDir.sizeLimit": "65Gi"}, f"{WP}.volumes[2].emptyDir.sizeLimit", "(64Gi), got 65Gi"),
    Seed({f"{WP}.securityContext.runAsUser": 0}, WC, "must run as another user than root"),
    Seed({f"{WP}.terminationGracePeriodSeconds": 330}, f"{WP}.terminationGracePeriodSeconds", "exceed RAY_GRACEFUL"),
    Seed({f"{WP}.initContainers[0].name": "ray-node"}, f"{WP}.initContainers[0].name", "must differ from those"),
    # Ray
    Seed({f"{C}.rayVersion": "2.59.0"}, f"{C}.rayVersion", "installed here (2.60.0), got 2.59.0"),
    Seed({f"{WC}.image": "rayproject/ray:2.59.1-gpu"}, f"{WC}.image", "name the cluster's Ray in its tag (ray2.60.0)"),
    Seed({f"{WC}.image": "x/tandem:1-ray2.59.1@sha256:12"}, f"{WC}.image", "must name the cluster's Ray"),
    Seed({f"{HC}.image": "tandem:latest"}, f"{HC}.image", "must name the cluster's Ray"),
    Seed({f"{HC}.command": ["bash", "-c", "x"]}, f"{HC}.command", "as the operator starts Ray"),
    Seed(
        {f"{W}.template.metadata.labels": {"ray.io/cluster": "x"}},
        f'{W}.template.metadata.labels["ray.io/cluster"]',
        "must be left out, as the operator sets it",
    ),
    Seed({f"{H}.rayStartParams.num-cpus": "none"}, f"{H}.rayStartParams.num-cpus", "must be a whole number, got none"),
    Seed({f"{H}.rayStartParams.num-gpus": "0.5"}, f"{H}.rayStartParams.num-gpus", "must be a whole number"),
    Seed(
        {f"{W}.rayStartParams.object-store-memory": "1Gi"},
        f"{W}.rayStartParams.object-store-memory",
        "must be a whole number, got 1Gi",
    ),
    Seed(
        {f"{W}.rayStartParams.object-store-memory": str(16 * 2**30 + 1)},
        f"{W}.rayStartParams.object-store-memory",
        "must not exceed /dev/shm (16Gi)",
    ),
    Seed(
        {f"{WC}.env[0]": {"name": "RAY_AUTH_MODE", "value": "disabled"}},
        f"{WC}.env[0]",
        "must be left out, as the operator sets RAY_AUTH_MODE by spec.rayClusterSpec.authOptions",
    ),
    Seed({f"{HC}.env[0]": {"name": "RAY_ADDRESS", "value": "auto"}}, f"{HC}.env[0]", "must be left out"),
    Seed({f"{HC}.env[0]": {"name": "RAY_AUTH_TOKEN", "value": "x"}}, f"{HC}.env[0].value", "must come from a Secret"),
    Seed(
        {
            f"{WC}.image": "busybox:1",
            f"{WC}.name": "log",
            f"{WP}.containers[1]": {"name": "ray-worker", "image": "x"},
        },
        WC,
        "must be the Ray container (ray-worker), got log",
    ),
    Seed({f"{W}.rayStartParams.num-gpus": "4"}, f"{W}.resources", "must be left out with rayStartParams num-gpus"),
    Seed({f"{H}.rayStartParams.labels": "a=b"}, f"{H}.rayStartParams.labels", "must be left out"),
    Seed({f"{H}.rayStartParams.redis-password": "x"}, f"{H}.rayStartParams.redis-password", "gcsFaultTolerance"),
    Seed({f"{W}.replicas": DELETE}, f"{W}.replicas", "required without enableInTreeAutoscaling"),
    Seed({f"{W}.replicas": 3}, f"{W}.replicas", "must be from minReplicas (2) to maxReplicas (2), got 3"),
    Seed({f"{W}.minReplicas": 3}, f"{W}.minReplicas", "must not exceed maxReplicas (2), got 3"),
    Seed({f"{W}.idleTimeoutSeconds": 9}, f"{W}.idleTimeoutSeconds", "must be left out without enableInTree"),
    Seed({f"{W}.priority": 1}, f"{W}.priority", "autoscalerOptions.version v2"),
    Seed({f"{C}.upgradeStrategy": {"type": "None"}}, f"{C}.upgradeStrategy", "must be left out in a RayJob"),
    Seed({f"{C}.authOptions.mode": "tokn"}, f"{C}.authOptions.mode", "did you mean token?"),
    Seed(
        {f"{C}.authOptions": {"mode": "token", "enableK8sTokenAuth": True}},
        f"{C}.authOptions.enableK8sTokenAuth",
        "must be left out in a RayJob",
    ),
    # Job
    Seed({"spec.entrypoint": " "}, "spec.entrypoint", "required with submissionMode K8sJobMode"),
    Seed({"spec.entrypoint": "tandem run a\nb"}, "spec.entrypoint", "must be one line"),
    Seed(
        {f"{HC}.volumeMounts[2].mountPath": "/etc/x"}, f"{HC}.volumeMounts", "must have /etc/tandem, which spec.entry"
    ),
    Seed(
        {"spec.metadata": {"HF_TOKEN": "x"}}, "spec.metadata.HF_TOKEN", "whoever reaches Ray can read it, got a value"
    ),
    Seed({"spec.metadata": {"proxy": "http://a:b@c"}}, "spec.metadata.proxy", "must be left out"),
    Seed({"spec.activeDeadlineSeconds": 3599}, "spec.activeDeadlineSeconds", "preRunningDeadlineSeconds (3600), got"),
    Seed({"spec.entrypointResources": "policy=1"}, "spec.entrypointResources", "must be a JSON object"),
    Seed({"spec.runtimeEnvYAML": "a: [1"}, "spec.runtimeEnvYAML", "must be YAML"),
    Seed({"spec.runtimeEnvYAML": "- a"}, "spec.runtimeEnvYAML", "must be a YAML mapping, got list"),
    Seed({"spec.runtimeEnvYAML": "env_vars: {A: 1}"}, "spec.runtimeEnvYAML.env_vars.A", "must be a string, got 1"),
    Seed({"spec.runtimeEnvYAML": "env_vars: {A_KEY: b}"}, "spec.runtimeEnvYAML.env_vars.A_KEY", "from a Secret"),
    Seed({"spec.shutdownAfterJobFinishes": DELETE}, "spec.ttlSecondsAfterFinished", "must be left out without"),
    Seed({"spec.shutdownAfterJobFinishes": False, "spec.suspend": True}, "spec.suspend", "must be false without"),
    Seed({C: DELETE}, C, "required without clusterSelector"),
    Seed({"spec.submissionMode": "HTTPMode"}, "spec.submitterPodTemplate", "must be left out unless"),
    Seed({"spec.submissionMode": "SidecarMode"}, "spec.submitterConfig", "must be left out unless"),
    Seed(
        {"spec.submissionMode": "SidecarMode", f"{HP}.restartPolicy": "Always"},
        f"{HP}.restartPolicy",
        "must be Never or left out with submissionMode SidecarMode",
    ),
    Seed({"spec.submissionMode": "InteractiveMode"}, "spec.backoffLimit", "must be 0 with submissionMode Interactive"),
    Seed(
        {"spec.submitterPodTemplate.spec.restartPolicy": DELETE},
        "spec.submitterPodTemplate.spec.restartPolicy",
        "must be Never or OnFailure, got nothing",
    ),
    Seed(
        {"spec.submitterPodTemplate.spec.containers[0].image": "rayproject/ray:2.9.0"},
        "spec.submitterPodTemplate.spec.containers[0].image",
        "must name the Ray installed here",
    ),
    Seed(
        {"spec.submitterPodTemplate.spec.containers[0].image": "tandem"},
        "spec.submitterPodTemplate.spec.containers[0].image",
        "must name the Ray installed here",
    ),
    Seed({'metadata.labels["kai.scheduler/queue"]': "a"}, "spec.submissionMode", "must be HTTPMode or SidecarMode"),
    # Deletion
    Seed(rules(("DeleteCluster", {})), "spec.deletionStrategy.deletionRules[0].condition", "got neither"),
    Seed(
        rules(("DeleteCluster", {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"})),
        "spec.deletionStrategy.deletionRules[0].condition",
        "not both, got both",
    ),
    Seed(
        rules(("DeleteCluster", {"jobStatus": "DONE"})),
        "spec.deletionStrategy.deletionRules[0].condition.jobStatus",
        "S",
    ),
    Seed({"spec.deletionStrategy": {}}, "spec.deletionStrategy", "must have deletionRules, or both"),
    Seed(
        {"spec.deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}},
        "spec.deletionStrategy",
        "or both onSuccess and onFailure, got onSuccess",
    ),
    Seed(
        {
            "spec.deletionStrategy": {
                **POLICIES,
                "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}],
            }
        },
        "spec.deletionStrategy",
        "got deletionRules and onSuccess and onFailure",
    ),
    Seed(
        rules(("DeleteSelf", {"jobStatus": "FAILED"})) | {"spec.shutdownAfterJobFinishes": True},
        "spec.shutdownAfterJobFinishes",
        "must be left out with deletionStrategy.deletionRules",
    ),
    Seed({"spec.deletionStrategy": POLICIES}, "spec.deletionStrategy.onSuccess.policy", "must not be DeleteNone"),
    Seed(
        rules(("DeleteCluster", {"jobStatus": "FAILED"})) | SELECTED,
        "spec.deletionStrategy.deletionRules[0].policy",
        "with clusterSelector",
    ),
    Seed(
        rules(("DeleteWorkers", {"jobStatus": "FAILED"})) | AUTOSCALED,
        "spec.deletionStrategy.deletionRules[0].policy",
        "with enableInTreeAutoscaling",
    ),
    Seed(
        rules(("DeleteSelf", {"jobStatus": "FAILED"}), ("DeleteSelf", {"jobStatus": "FAILED", "ttlSeconds": 5})),
        "spec.deletionStrategy.deletionRules[1]",
        "got DeleteSelf at FAILED again",
    ),
    Seed(
        rules(("DeleteCluster", {"jobStatus": "FAILED", "ttlSeconds": 5}), ("DeleteSelf", {"jobStatus": "FAILED"})),
        "spec.deletionStrategy.deletionRules",
        "must be at least DeleteCluster's (5), got 0",
    ),
    # An existing cluster
    Seed({"spec.clusterSelector": {"ray.io/cluster": "a"}}, "spec.clusterSelector", "must be left out with rayCluster"),
    Seed(SELECTED | {"spec.clusterSelector": {"cluster": "a"}}, "spec.clusterSelector", "must have ray.io/cluster"),
    Seed(SELECTED | {"spec.submissionMode": "SidecarMode"}, "spec.clusterSelector", "with submissionMode SidecarMode"),
    Seed(SELECTED | {"spec.backoffLimit": 1}, "spec.backoffLimit", "must be 0 with clusterSelector"),
    Seed(SELECTED | {"spec.suspend": True}, "spec.suspend", "must be false with clusterSelector"),
    # Kueue
    Seed({"spec.shutdownAfterJobFinishes": False}, "spec.shutdownAfterJobFinishes", "must be true with a queue"),
    Seed({"spec.deletionStrategy": POLICIES}, "spec.deletionStrategy", "must be left out with a queue"),
    Seed({"spec.clusterSelector": {"ray.io/cluster": "a"}}, "spec.clusterSelector", "must be left out with a queue"),
    Seed({f"{C}.enableInTreeAutoscaling": True}, f"{C}.enableInTreeAutoscaling", "kueue.x-k8s.io/elastic-job"),
    Seed({f"{W}.groupName": "head"}, f"{W}.groupName", "must not be head with a queue"),
    Seed({f'metadata.labels{SCALER}queue-name"]': ""}, f'metadata.labels{SCALER}queue-name"]', "must name a queue"),
    Seed(
        {f'metadata.labels{SCALER}queue-name"]': "GPUs"}, f'metadata.labels{SCALER}queue-name"]', "'-' and '.'), got G"
    ),
    Seed(
        {f'metadata.labels{SCALER}queue-name"]': DELETE, f'metadata.labels{SCALER}priority-class"]': "x"},
        f'metadata.labels{SCALER}priority-class"]',
        "must be left out without",
    ),
    Seed(
        {f'metadata.labels{SCALER}max-exec-time-seconds"]': "1h"},
        f'metadata.labels{SCALER}max-exec-time-seconds"]',
        "must be a whole number of seconds",
    ),
]

SPEC_H, SPEC_W = "spec.headGroupSpec", "spec.workerGroupSpecs[0]"
ENV = f"{SPEC_H}.template.spec.containers[0].env"
GCS = "spec.gcsFaultToleranceOptions"
CLUSTER_SEEDS = [
    Seed({"metadata.name": "a" * 54}, "metadata.name", "at most 53 characters"),
    Seed({"spec.entrypoint": "x"}, "spec.entrypoint", "unknown field"),
    Seed({"spec.autoscalerOptions.version": "v3"}, "spec.autoscalerOptions.version", "must be one of v1, v2"),
    Seed({"spec.autoscalerOptions.upscalingMode": "Fast"}, "spec.autoscalerOptions.upscalingMode", "Aggressive"),
    Seed({"spec.managedBy": "kueue"}, "spec.managedBy", "ray.io/kuberay-operator"),
    Seed({"spec.enableInTreeAutoscaling": False}, "spec.autoscalerOptions", "must be left out without"),
    Seed({"spec.autoscalerOptions.version": "v1"}, f"{SPEC_W}.priority", "autoscalerOptions.version v2, got 2"),
    Seed({f"{SPEC_W}.suspend": True}, f"{SPEC_W}.suspend", "must be left out with enableInTreeAutoscaling"),
    Seed(
        {f"{SPEC_W}.template.spec.restartPolicy": "Always"},
        f"{SPEC_W}.template.spec.restartPolicy",
        "must be Never or left out with the autoscaler v2",
    ),
    Seed({f"{ENV}[4]": {"name": "RAY_enable_autoscaler_v2", "value": "1"}}, ENV, "must not have RAY_enable_autoscaler"),
    Seed(
        {"spec.autoscalerOptions.env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "x"}]},
        "spec.autoscalerOptions.env",
        "must not have KUBERAY_GEN_AUTOSCALER_START_CMD",
    ),
    Seed({f"{SPEC_W}.replicas": 3}, f"{SPEC_W}.replicas", "from minReplicas (0) to maxReplicas (2)"),
    Seed({"spec.workerGroupSpecs[1]": {}}, "spec.workerGroupSpecs[1].groupName", "required"),
    Seed({"spec.rayVersion": "2.51.0"}, "spec.authOptions.mode", "needs rayVersion 2.52.0 or later"),
    Seed({"spec.rayVersion": "2.55.0"}, f"{SPEC_W}.priority", "needs rayVersion 2.56.0 or later"),
    Seed({"spec.authOptions": {"enableK8sTokenAuth": True}}, "spec.authOptions.enableK8sTokenAuth", "needs mode token"),
    Seed(K8S_AUTH | {"spec.authOptions.secretName": "x"}, "spec.authOptions.secretName", "with enableK8sTokenAuth"),
    Seed({f"{GCS}.redisAddress": DELETE}, f"{GCS}.redisAddress", "required with backend redis"),
    Seed({f"{GCS}.redisAddress": "redis://:x@y:1"}, f"{GCS}.redisAddress", "must hold no user or password"),
    Seed({f"{GCS}.storage": {"size": "1Gi"}}, f"{GCS}.storage", "must be left out with backend redis"),
    Seed({f"{GCS}.redisPassword": {"value": "x"}}, f"{GCS}.redisPassword.value", "unknown field"),
    Seed({f"{GCS}.backend": "rocksdb"}, f"{GCS}.redisAddress", "must be left out with backend rocksdb"),
    Seed({f"{GCS}.backend": "etcd"}, f"{GCS}.backend", "must be one of redis, rocksdb"),
    Seed(
        {GCS: {"backend": "rocksdb", "storage": {"claimName": "a", "size": "1Gi"}}},
        f"{GCS}.storage.claimName",
        "which make a new claim",
    ),
    Seed(
        {GCS: {"backend": "rocksdb"}, f"{SPEC_H}.template.spec.containers[0].volumeMounts[0].mountPath": "/data/gcs"},
        f"{SPEC_H}.template.spec.containers[0].volumeMounts[0].mountPath",
        "must differ from the operator's",
    ),
    Seed({f"{ENV}[0].name": "RAY_REDIS_ADDRESS"}, f"{ENV}[0].name", "must be left out, as spec.gcs"),
    Seed({f"{ENV}[0].name": "RAY_gcs_storage", GCS: {"backend": "rocksdb"}}, f"{ENV}[0].name", "must be left out"),
    Seed(
        {"metadata.annotations": {"ray.io/ft-enabled": "true"}},
        'metadata.annotations["ray.io/ft-enabled"]',
        "must be left out with spec.gcsFaultToleranceOptions",
    ),
    Seed(
        {"metadata.labels": {"kueue.x-k8s.io/queue-name": "a"}},
        "spec.enableInTreeAutoscaling",
        "must be false with a queue",
    ),
]

CONFIG_MAP_SEEDS = [
    Seed({"dat": {}}, "dat", "did you mean data?"),
    Seed({"data.number": 1}, "data.number", "must be a string"),
    Seed({'data["a/b"]': "x"}, 'data["a/b"]', "letters, digits, '-', '_' and '.'"),
    Seed({'data["run.yaml"]': "x" * 2**20}, "data", "must be at most 1048576 bytes in all"),
    Seed({"metadata.name": "A"}, "metadata.name", "lower-case letters"),
    Seed({"apiVersion": "v2"}, "apiVersion", "must be one of v1"),
]

POLICY_SEEDS = [
    Seed({"spec.ingres": []}, "spec.ingres", "did you mean ingress?"),
    Seed({"spec.ingress[0].form": []}, "spec.ingress[0].form", "did you mean from?"),
    Seed({"spec.egress[1].to[0]": {}}, "spec.egress[1].to[0]", "must have ipBlock, or podSelector"),
    Seed({"spec.egress[1].to[0].podSelector": {}}, "spec.egress[1].to[0]", "got both"),
    Seed({"spec.egress[1].to[0].ipBlock.cidr": "10.0.0.1/8"}, "spec.egress[1].to[0].ipBlock.cidr", "must be a network"),
    Seed(
        {"spec.egress[1].to[0].ipBlock.except": ["fd00::/8"]},
        "spec.egress[1].to[0].ipBlock.except",
        "must lie within 0.0.0.0/0, got fd00::/8",
    ),
    Seed({"spec.policyTypes": ["Egres"]}, "spec.policyTypes[0]", "did you mean Egress?"),
    Seed({"spec.egress[0].ports[0].port": 0}, "spec.egress[0].ports[0].port", "must be from 1 to 65535"),
]
