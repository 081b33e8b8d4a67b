"""The tables of the ledger."""

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Float, Integer, String, Text

metadata = sa.MetaData()
artifacts = sa.Table(
    "artifacts",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("stage", String(40), nullable=False, index=True),
    Column("recipe", String(100), nullable=False, index=True),
    Column("path", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("summary", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("input_contents", Text, nullable=False),
    Column("run_id", String(40), nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("created_s", Float, nullable=False),
)
claims = sa.Table(
    "claims",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("until_s", Float, nullable=False),
)
runs = sa.Table(
    "runs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("recipe", String(100), nullable=False, index=True),
    Column("written", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("overrides", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("message", Text, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("started_s", Float, nullable=False),
    Column("ended_s", Float),
)
run_stages = sa.Table(
    "run_stages",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("stage", String(40), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("fingerprint", String(64)),
    Column("outcome", String(20), nullable=False),
    Column("note", Text, nullable=False),
    Column("duration_s", Float, nullable=False),
)
pins = sa.Table(
    "pins",
    metadata,
    Column("key", String(300), primary_key=True),
    Column("value", Text, nullable=False),
)
watermarks = sa.Table(
    "watermarks",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),
)
models = sa.Table(
    "models",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("train_fingerprint", String(64), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("path", Text, nullable=False),
    Column("run_id", String(40), nullable=False),
    Column("data_version", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    sa.UniqueConstraint("name", "digest"),
)
pointers = sa.Table(
    "pointers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("alias", String(100), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
)
audit = sa.Table(
    "audit",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("alias", String(100), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("from_version", Integer),
    Column("to_version", Integer, nullable=False),
    Column("action", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("run_id", String(40)),
    Column("at_s", Float, nullable=False),
)
