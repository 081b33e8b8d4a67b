"""Evidently's ways to find drift in embeddings, each as it comes, on windows from a file.

``drift_calibration.py`` runs this in Evidently's own environment (scripts/make-env.sh evidently):

    evidently_windows.py FILE.npz

The file has ``pool`` (n, d), ``before`` (windows, rows), the reference rows of each window, and
``after`` (windows, rows, d). It prints JSON: way -> share of the windows that are drift to it.
"""

import json
import sys

import numpy as np
import pandas as pd
from evidently.legacy.metrics.data_drift.embedding_drift_methods import (
    distance,
    mmd,
    model,
    ratio,
)

# ``model`` is what EmbeddingsDriftMetric takes if nothing is said.
WAYS = {
    "model (AUC > 0.55)": model(),
    "model, bootstrap": model(bootstrap=True),
    "share of columns": ratio(),
    "distance": distance(),
    "MMD": mmd(),
}


def main(path: str) -> None:
    """Ask each way about each window."""
    given = np.load(path)
    found = dict.fromkeys(WAYS, 0)
    for before, after in zip(given["before"], given["after"], strict=True):
        for name, way in WAYS.items():
            # They write into the frames they get.
            sides = pd.DataFrame(after), pd.DataFrame(given["pool"][before])
            found[name] += bool(way(*sides)[1])
    print(json.dumps({name: count / len(given["after"]) for name, count in found.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
