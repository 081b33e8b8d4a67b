"""A feature store in memory: the values of ``feast_repo.KNOWN``, by the same rules as Feast's."""

from feast_repo import KNOWN
from penstock.errors import FeatureError
from penstock.features.base import TIME, FeatureOptions


class MemoryStore:
    Options = FeatureOptions

    def __init__(self, options=None, folder=None):
        self.broken = False

    def version(self):
        return "1"

    def at(self, rows, names):
        import pyarrow as pa

        found = [self._latest(row["user_id"], names, row[TIME]) for row in rows.to_pylist()]
        types = {"plan": pa.string(), "tickets": pa.int64()}
        columns = {name: [one[name] for one in found] for name in names}
        return pa.table({n: pa.array(v, types[n.partition(":")[2]]) for n, v in columns.items()})

    def now(self, entity, names):
        if self.broken:
            raise FeatureError("it is broken")
        return self._latest(entity["user_id"], names, None)

    def _latest(self, user, names, until):
        for name in names:
            if name not in ("profile:plan", "profile:tickets"):
                raise FeatureError(f"there is no {name}")
        known = [
            row for row in KNOWN
            if row["user_id"] == user and (until is None or row["changed_at"] <= until)
        ]  # fmt: skip
        newest = max(known, key=lambda row: row["changed_at"], default={})
        return {name: newest.get(name.partition(":")[2]) for name in names}
