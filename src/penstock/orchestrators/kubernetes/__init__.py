"""Manifests for Kubernetes: a kustomize base, overlays, and jobs to start by hand."""

from penstock.orchestrators.kubernetes.bundle import bundle
from penstock.orchestrators.kubernetes.options import KubernetesOptions

__all__ = ["KubernetesOptions", "bundle"]
