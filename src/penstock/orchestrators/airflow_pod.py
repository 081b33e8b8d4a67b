"""A stage in a pod; apart from the rest, for Kubernetes' client takes seconds to import.

Exported DAG files hold the class as it stands here.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException


class StagePod(KubernetesPodOperator):  # type: ignore[misc]
    """A stage in a pod; exit code 2 is not tried again."""

    def cleanup(self, pod: Any, remote_pod: Any, *args: Any, **kwargs: Any) -> None:
        """End as the pod did."""
        try:
            super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowException:
            ended = getattr(remote_pod.status, "container_statuses", None) or ()
            if any(one.state.terminated and one.state.terminated.exit_code == 2 for one in ended):
                raise AirflowFailException("penstock ended with code 2, see its log") from None
            raise
