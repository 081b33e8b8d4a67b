"""The page beside the manifests: which secret they need, and the commands to apply them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.orchestrators.kubernetes.project import RAY_TOKEN_KEY, Manifest, Project

_TEMPLATE = """\
# @NAME@ on Kubernetes

Written by `penstock export kubernetes`. `base/`, `jobs/` and `monitoring/` are written again by
the next export; `overlays/` is yours.

## The secret

Nothing here holds a secret: pods take these keys of the secret `@SECRET@`.

@KEYS@

Put them into a file that is nowhere in a repository, one `KEY=value` a line, and make the secret:

```sh
kubectl create namespace @NAMESPACE@
kubectl --namespace @NAMESPACE@ create secret generic @SECRET@ --from-env-file=FILE
```

## Apply

```sh
kubectl kustomize overlays/production | less
kubectl apply --kustomize overlays/production
kubectl --namespace @NAMESPACE@ rollout status deployment/@NAME@-gateway
```

## Run the loop once

```sh
@JOBS@
```
"""


def readme(project: Project, manifests: Sequence[Manifest], jobs: Sequence[str]) -> str:
    """The page.

    Args:
        project: Whose.
        manifests: All that are written: what they refer to is what is needed.
        jobs: Names of the jobs' files.
    """
    keys = _keys(manifests)
    if any(one["kind"].startswith("Ray") for one in manifests):
        keys[RAY_TOKEN_KEY] = True
    rows = [
        "| key | |",
        "|---|---|",
        *(f"| `{key}` | {'needed' if keys[key] else 'if you have it'} |" for key in sorted(keys)),
    ]
    commands = [f"kubectl create --filename jobs/{name}.yaml" for name in jobs]
    words = {
        "@NAMESPACE@": project.options.namespace,
        "@NAME@": project.name,
        "@SECRET@": project.options.secret,
        "@KEYS@": "\n".join(rows),
        "@JOBS@": "\n".join(commands),
    }
    text = _TEMPLATE
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text


def _keys(value: Any) -> dict[str, bool]:
    """Keys of the secret -> whether a pod does not start without it."""
    found: dict[str, bool] = {}
    for reference in _references(value):
        needed = not reference.get("optional", False)
        found[reference["key"]] = found.get(reference["key"], False) or needed
    return found


def _references(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "secretKeyRef":
                yield item
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
