"""Strict checks of manifests: Kubernetes' own kinds, and those that operators bring.

Kubernetes' kinds are checked by kubernetes-validate, which has the schemas of its releases,
and those of Prometheus' operator by models that cloudcoil has generated from the operator's
own definitions. KubeRay's are in no package, so their fields are written down here, by the API
reference of KubeRay 1.6 (ray.io/v1, Apache-2.0); what is Kubernetes' own in them, such as pod
templates, is checked by Kubernetes' own schemas. Unknown fields are refused everywhere.
"""

import functools

import jsonschema
import kubernetes_validate
import pydantic
import referencing
from kubernetes_validate import utils

# From the first that knows `preStop.sleep` without a feature gate, to the newest.
VERSIONS = ("1.30", utils.latest_version())


def check(manifest):
    """Raise ``ValidationError`` unless the manifest is one."""
    group = manifest["apiVersion"].partition("/")[0]
    if group == "ray.io":
        _validator(manifest["kind"]).validate(manifest)
    elif group == "monitoring.coreos.com":
        _check_monitoring(manifest)
    else:
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


_KINDS = {
    "RayService": _ray_service,
    "RayJob": _ray_job,
}


@functools.cache
def _validator(kind):
    if kind not in _KINDS:
        raise SchemaNotFoundError(kind, utils.latest_version(), "custom")
    registry = _definitions() @ referencing.Registry()
    return jsonschema.Draft202012Validator(_KINDS[kind](), registry=registry)


def _check_monitoring(manifest):
    from cloudcoil.models.prometheus_operator import v1  # 4 MB of models

    model = getattr(v1, manifest["kind"], None)
    if model is None:
        raise SchemaNotFoundError(manifest["kind"], "v1", "prometheus-operator")
    try:
        read = model.model_validate(manifest)
    except pydantic.ValidationError as error:
        raise ValidationError(str(error)) from error
    # A model leaves out what it does not know.
    known = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
    if known != manifest:
        raise ValidationError(f"unknown fields: {manifest} is read as {known}")
