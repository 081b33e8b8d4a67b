"""The peer of ``benchmarks/engines.py``: the same steps by datatrove, in its own environment.

``python datatrove_steps.py DOCUMENTS WORK MIN_CHARACTERS NGRAM`` prints the ids it keeps.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import sys
import unicodedata
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Clean(BaseFormatter):
    """What Penstock's ``normalise`` does."""

    name = "clean"

    def format(self, text: str) -> str:
        """One form of the text."""
        text = unicodedata.normalize("NFC", _CONTROL.sub("", re.sub(r"\r\n?", "\n", text)))
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def main(path: Path, work: Path, min_characters: int, ngram: int) -> None:
    """Run the four passes that datatrove's near-dedupe takes."""
    logging.disable(logging.INFO)
    config = MinhashConfig(n_grams=ngram)  # 14 buckets of 8 hashes, its default
    cleaned, signatures, buckets, removed, kept = (
        str(work / name) for name in ("cleaned", "signatures", "buckets", "removed", "kept")
    )

    numbers = itertools.count()

    def run(*steps: object, tasks: int = 1) -> None:
        logs = work / "logs" / str(next(numbers))
        LocalPipelineExecutor(list(steps), tasks, workers=1, logging_dir=str(logs)).run()

    run(
        JsonlReader(str(path.parent), glob_pattern=path.name),
        Clean(),
        LambdaFilter(lambda doc: len(doc.text) >= min_characters),
        JsonlWriter(cleaned, compression=None),
    )
    run(JsonlReader(cleaned), MinhashDedupSignature(signatures, config=config))
    run(MinhashDedupBuckets(signatures, buckets, config=config), tasks=config.num_buckets)
    run(MinhashDedupCluster(buckets, removed, config=config))
    run(JsonlReader(cleaned), MinhashDedupFilter(removed), JsonlWriter(kept, compression=None))
    ids = [
        json.loads(line)["id"]
        for part in sorted(Path(kept).glob("*.jsonl"))
        for line in part.read_text(encoding="utf-8").splitlines()
    ]
    print("\n" + json.dumps(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
