"""Joins features by Feast, in Feast's own environment; started by ``feast.py``.

``python -I feast_worker.py REPO`` reads one JSON request a line from standard
input, ``{"rows": FILE, "features": [...], "joined": FILE}``, and answers each
with ``{"error": null}`` or ``{"error": TEXT}``; the first answer says whether it
is ready. It imports nothing of Penstock, which need not be installed there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main(repo: str) -> None:
    """Answer until standard input ends."""
    os.environ.setdefault("FEAST_USAGE", "False")
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what Feast prints must not look like an answer
        store: list[Any] = []

        def answer(work: Callable[[], None]) -> None:
            try:
                work()
                error = None
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
            answers.write(json.dumps({"error": error}) + "\n")
            answers.flush()

        answer(lambda: store.append(_open(repo)))
        for line in sys.stdin:
            request = json.loads(line)
            answer(lambda request=request: _join(store[0], **request))  # type: ignore[misc]


def _open(repo: str) -> Any:
    from feast import FeatureStore

    store = FeatureStore(repo_path=repo)
    store.list_entities()  # reads the registry, or says that it cannot
    return store


def _join(store: Any, rows: str, features: list[str], joined: str) -> None:
    import pyarrow as pa

    with pa.memory_map(rows) as file:
        entities = pa.ipc.open_file(file).read_all().to_pandas()
    found = store.get_historical_features(
        entity_df=entities, features=features, full_feature_names=True
    ).to_arrow()
    wanted = found.select(["_row", *(name.replace(":", "__") for name in features)])
    wanted = wanted.replace_schema_metadata(None)
    with pa.ipc.new_file(joined, wanted.schema) as writer:
        writer.write_table(wanted)


if __name__ == "__main__":
    main(sys.argv[1])
