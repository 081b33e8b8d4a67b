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
# What orchestrators call runs; run_keys.py explains it.
run_keys = sa.Table(
    "run_keys",
    metadata,
    Column("recipe", String(100), primary_key=True),
    Column("key", String(300), primary_key=True),
    Column("run_id", String(40), nullable=False),
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
# Trials of a version beside the one that serves; rollouts.py explains them.
rollouts = sa.Table(
    "rollouts",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("alias", String(100), nullable=False),
    # Model and alias while it is open, then null: there is one open rollout of each at most.
    Column("open_for", String(301), unique=True),
    Column("champion", Integer, nullable=False),
    Column("challenger", Integer, nullable=False),
    Column("steps", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("step", Integer, nullable=False),
    Column("started_s", Float, nullable=False),
    Column("step_started_s", Float, nullable=False),
    Column("deadline_s", Float),
    Column("ended_s", Float),
    Column("reason", Text, nullable=False),
    Column("trouble", Text, nullable=False),
    Column("run_id", String(40)),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("epoch", Integer, nullable=False),
    Column("num_batches", BigInteger, nullable=False),
    Column("checkpoint_at", BigInteger, nullable=False),
    Column("checkpoint", Text, nullable=False),
    sa.Index("ix_rollouts_model_alias", "model", "alias"),
)
rollout_events = sa.Table(
    "rollout_events",
    metadata,
    Column("rollout", String(60), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("at_s", Float, nullable=False),
    Column("action", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("step", Integer, nullable=False),
    Column("share", Float, nullable=False),
    Column("batch", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("actor", String(200), nullable=False),
)
rollout_observations = sa.Table(
    "rollout_observations",
    metadata,
    Column("rollout", String(60), primary_key=True),
    Column("batch", BigInteger, primary_key=True),
    Column("worker", String(200), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("observed", Text, nullable=False),
    sa.UniqueConstraint("rollout", "worker", "sequence"),
)
# What was seen, and what was decided about it: alarms.py and retrain_log.py explain them.
alarms = sa.Table(
    "alarms",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("recipe", String(100), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("key", String(200), nullable=False),
    Column("raised_s", Float, nullable=False),
    Column("severity", String(20), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("received_s", Float, nullable=False),
    Column("state", String(20), nullable=False),
    Column("start_key", String(200)),
    sa.UniqueConstraint("recipe", "kind", "key"),
    sa.Index("ix_alarms_recipe_state", "recipe", "state"),
    sqlite_autoincrement=True,  # a number is never given twice
)
alarm_events = sa.Table(
    "alarm_events",
    metadata,
    Column("alarm", Integer, primary_key=True),
    Column("nth", Integer, primary_key=True),
    Column("at_s", Float, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(200), nullable=False),
)
retrain_log = sa.Table(
    "retrain_log",
    metadata,
    Column("recipe", String(100), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("at_s", Float, nullable=False),
    Column("action", String(20), nullable=False),
    Column("start_key", String(200)),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("actor", String(200), nullable=False),
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
# What was found in each window of traffic; drift_records.py explains it.
drift_windows = sa.Table(
    "drift_windows",
    metadata,
    Column("recipe", String(100), primary_key=True),
    Column("stream", String(64), primary_key=True),
    Column("start_ms", BigInteger, primary_key=True),
    Column("end_ms", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("found", Text, nullable=False),
)
# What a judge was asked on a day; judge_budget.py explains it.
judge_days = sa.Table(
    "judge_days",
    metadata,
    Column("recipe", String(100), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("questions", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
)

# API keys and what they use; the amounts are explained in accounts.py.
api_keys = sa.Table(
    "api_keys",
    metadata,
    Column("id", String(20), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("tenant", String(100), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("models", Text),  # null: all
    Column("requests_per_min", BigInteger),
    Column("tokens_per_min", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("budget_nanousd", BigInteger),
    Column("period", String(10), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float),
    Column("revoked_s", Float),
)
key_changes = sa.Table(
    "key_changes",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("key_id", String(20), nullable=False, index=True),
    Column("at_s", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("limits", Text, nullable=False),  # after it, as JSON
)
accounts = sa.Table(
    "accounts",
    metadata,
    Column("key_id", String(20), primary_key=True),
    Column("start_s", BigInteger, primary_key=True),
    Column("tokens_taken", BigInteger, nullable=False),
    Column("nanousd_taken", BigInteger, nullable=False),
    Column("tokens_spent", BigInteger, nullable=False),
    Column("nanousd_spent", BigInteger, nullable=False),
)
drawings = sa.Table(
    "drawings",
    metadata,
    Column("holder", String(200), primary_key=True),
    Column("key_id", String(20), primary_key=True),
    Column("start_s", BigInteger, primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
)
buckets = sa.Table(
    "buckets",
    metadata,
    Column("key_id", String(20), primary_key=True),
    Column("requests", Float, nullable=False),
    Column("tokens", Float, nullable=False),
    Column("at_s", Float, nullable=False),
)
holders = sa.Table(
    "holders",
    metadata,
    Column("holder", String(200), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("seen_s", Float, nullable=False),
)
version_spending = sa.Table(
    "version_spending",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("run_id", String(40), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
)
spending = sa.Table(
    "spending",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(20), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("nanousd", BigInteger, nullable=False),
)
# Responses with scores whose traces were not there; waiting_scores.py explains it.
waiting_scores = sa.Table(
    "waiting_scores",
    metadata,
    Column("receiver", String(500), primary_key=True),
    Column("source", String(40), primary_key=True),
    Column("response_id", String(100), primary_key=True),
    Column("reason", Text, nullable=False),
)
