"""Strict checks of manifests: Kubernetes' own kinds, and those that operators bring.

Kubernetes' kinds are checked by kubernetes-validate, which has the schemas of its releases.
For operators' kinds no such package exists for all of them, so their fields are written down
here, by the API references of KubeRay 1.6 (ray.io/v1) and of prometheus-operator 0.95
(monitoring.coreos.com/v1), both Apache-2.0. What is Kubernetes' own in them, such as pod
templates, is checked by Kubernetes' own schemas. Unknown fields are refused everywhere.
"""

import functools

import jsonschema
import kubernetes_validate
import referencing
from kubernetes_validate import utils

# From the first that knows `preStop.sleep` without a feature gate, to the newest.
VERSIONS = ("1.30", utils.latest_version())


def check(manifest):
    """Raise ``ValidationError`` unless the manifest is one."""
    if manifest["apiVersion"].partition("/")[0] in ("ray.io", "monitoring.coreos.com"):
        _check_custom(manifest)
        return
    for version in VERSIONS:
        utils.validate(manifest, version, strict=True)


# Each call would parse 2 MB of definitions.
utils.schema_contents = functools.cache(utils.schema_contents)
ValidationError = jsonschema.ValidationError
SchemaNotFoundError = kubernetes_validate.SchemaNotFoundError


@functools.cache
def _definitions():
    folder = f"kubernetes-json-schema/v{utils.latest_version()}-local-strict"
    contents = utils.schema_contents(f"{folder}/_definitions.json", utils.latest_version())
    return referencing.Resource.from_contents(contents)


def _core(name):
    return {"$ref": f"{_definitions().id()}#/$defs/io.k8s.{name}"}


def _object(fields, required=()):
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, COUNT, NUMBER, YES = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "number"},
    {"type": "boolean"},
)
TEXTS = {"type": "object", "additionalProperties": TEXT}
# Prometheus' own way to write a duration.
DURATION = {"type": "string", "pattern": r"^(0|([0-9]+(ms|[smhdwy]))+)$"}


def _list(of):
    return {"type": "array", "items": of}


def _kind(version, kind, spec):
    return _object(
        {
            "apiVersion": {"const": version},
            "kind": {"const": kind},
            "metadata": _core("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            "spec": spec,
        },
        ["apiVersion", "kind", "metadata", "spec"],
    )


def _ray_cluster():
    head = {
        "template": _core("api.core.v1.PodTemplateSpec"),
        "headService": _core("api.core.v1.Service"),
        "enableIngress": YES,
        "labels": TEXTS,
        "resources": TEXTS,
        "rayStartParams": TEXTS,
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    }
    worker = {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "numOfHosts": COUNT,
        "idleTimeoutSeconds": COUNT,
        "suspend": YES,
        "labels": TEXTS,
        "resources": TEXTS,
        "rayStartParams": TEXTS,
        "scaleStrategy": _object({"workersToDelete": _list(TEXT)}),
        "template": _core("api.core.v1.PodTemplateSpec"),
    }
    autoscaler = {
        "resources": _core("api.core.v1.ResourceRequirements"),
        "image": TEXT,
        "imagePullPolicy": TEXT,
        "securityContext": _core("api.core.v1.SecurityContext"),
        "idleTimeoutSeconds": COUNT,
        "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "version": {"enum": ["v1", "v2"]},
        "env": _list(_core("api.core.v1.EnvVar")),
        "envFrom": _list(_core("api.core.v1.EnvFromSource")),
        "volumeMounts": _list(_core("api.core.v1.VolumeMount")),
    }
    fields = {
        "authOptions": _object(
            {
                "mode": {"enum": ["disabled", "token"]},
                "secretName": TEXT,
                "enableK8sTokenAuth": YES,
            }
        ),
        "autoscalerOptions": _object(autoscaler),
        "enableInTreeAutoscaling": YES,
        "headGroupSpec": _object(head, ["template"]),
        "headServiceAnnotations": TEXTS,
        "managedBy": TEXT,
        "rayVersion": TEXT,
        "suspend": YES,
        "workerGroupSpecs": _list(_object(worker, ["groupName", "template"])),
    }
    return _object(fields, ["headGroupSpec"])


def _ray_service():
    strategy = {"type": {"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}}
    fields = {
        "upgradeStrategy": _object(strategy),
        "serveConfigV2": TEXT,
        "serveService": _core("api.core.v1.Service"),
        "rayClusterConfig": _ray_cluster(),
        "rayClusterDeletionDelaySeconds": COUNT,
        "excludeHeadPodFromServeSvc": YES,
        "managedBy": TEXT,
    }
    return _kind("ray.io/v1", "RayService", _object(fields))


def _ray_job():
    modes = ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    fields = {
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": COUNT,
        "clusterSelector": TEXTS,
        "entrypoint": TEXT,
        "entrypointNumCpus": NUMBER,
        "entrypointNumGpus": NUMBER,
        "entrypointResources": TEXT,
        "jobId": TEXT,
        "managedBy": TEXT,
        "metadata": TEXTS,
        "rayClusterSpec": _ray_cluster(),
        "runtimeEnvYAML": TEXT,
        "shutdownAfterJobFinishes": YES,
        "submissionMode": {"enum": modes},
        "submitterConfig": _object({"backoffLimit": COUNT}),
        "submitterPodTemplate": _core("api.core.v1.PodTemplateSpec"),
        "suspend": YES,
        "ttlSecondsAfterFinished": COUNT,
    }
    return _kind("ray.io/v1", "RayJob", _object(fields))


def _service_monitor():
    relabeling = {
        "action": TEXT,
        "regex": TEXT,
        "replacement": TEXT,
        "separator": TEXT,
        "sourceLabels": _list(TEXT),
        "targetLabel": TEXT,
        "modulus": COUNT,
    }
    endpoint = {
        "relabelings": _list(_object(relabeling)),
        "metricRelabelings": _list(_object(relabeling)),
        "port": TEXT,
        "targetPort": {"type": ["string", "integer"]},
        "path": TEXT,
        "scheme": {"enum": ["http", "https"]},
        "interval": DURATION,
        "scrapeTimeout": DURATION,
        "honorLabels": YES,
        "honorTimestamps": YES,
    }
    namespaces = {"any": YES, "matchNames": _list(TEXT)}
    fields = {
        "endpoints": _list(_object(endpoint)),
        "jobLabel": TEXT,
        "namespaceSelector": _object(namespaces),
        "podTargetLabels": _list(TEXT),
        "sampleLimit": COUNT,
        "selector": _core("apimachinery.pkg.apis.meta.v1.LabelSelector"),
        "targetLabels": _list(TEXT),
    }
    spec = _object(fields, ["endpoints", "selector"])
    return _kind("monitoring.coreos.com/v1", "ServiceMonitor", spec)


def _prometheus_rule():
    rule = {
        "alert": TEXT,
        "record": TEXT,
        "expr": {"type": ["string", "integer"]},
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": TEXTS,
        "annotations": TEXTS,
    }
    group = {
        "name": {"type": "string", "minLength": 1},
        "interval": DURATION,
        "query_offset": DURATION,
        "limit": COUNT,
        "labels": TEXTS,
        "partial_response_strategy": {"type": "string", "pattern": "^(?i:|abort|warn)$"},
        "rules": _list(_object(rule, ["expr"])),
    }
    spec = _object({"groups": _list(_object(group, ["name"]))})
    return _kind("monitoring.coreos.com/v1", "PrometheusRule", spec)


_KINDS = {
    "RayService": _ray_service,
    "RayJob": _ray_job,
    "ServiceMonitor": _service_monitor,
    "PrometheusRule": _prometheus_rule,
}


@functools.cache
def _validator(kind):
    if kind not in _KINDS:
        raise SchemaNotFoundError(kind, utils.latest_version(), "custom")
    registry = _definitions() @ referencing.Registry()
    return jsonschema.Draft202012Validator(_KINDS[kind](), registry=registry)


def _check_custom(manifest):
    _validator(manifest["kind"]).validate(manifest)
