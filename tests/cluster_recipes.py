"""Recipes for clusters, from the least to one with everything in it."""

from pathlib import Path

from penstock.cli.options import overrides_of
from penstock.orchestrators.kubernetes import KubernetesOptions, bundle
from penstock.orchestrators.unexpanded import load_unexpanded

LEAST = """\
name: support
store: s3://models/support
ledger: ${PENSTOCK_LEDGER}
tracking: http://mlflow.example.org:5000
sources: {rows: {type: files, paths: [rows.jsonl]}}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
serve: {keys: true}
"""

# Ray for training and serving, vLLM for a model that no promotion changes, an API of others.
EVERYTHING = """\
name: support
store: /mnt/penstock/support
ledger: ${PENSTOCK_LEDGER}
sources:
  tickets: {type: files, paths: ["/mnt/data/tickets/*.jsonl"]}
  replies:
    type: sql
    url: postgresql://reader@db.example.org/replies
    password: ${REPLIES_PASSWORD}
    query: select * from replies
    cursor: id
  live:
    type: kafka
    bootstrap_servers: kafka.example.org:9093
    topics: [replies]
    security: {protocol: sasl_ssl, username: penstock, password_env: KAFKA_PASSWORD}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
observe:
  retrain: {}
  drift: {window_s: 3600}
  judge:
    model: judge
    base_url: https://judge.example.org:8444/v1
    api_key_env: JUDGE_KEY
    criteria: It helps.
train: {launcher: {ray: {workers: 4, cpus_per_worker: 8, gpus_per_worker: 1}}}
serve:
  keys: true
  request_timeout_s: 90
  drain_timeout_s: 41.5
  traces: {to: langfuse}
  log: {content: true}
  models:
    support:
      backend: {ray_serve: {inside: ctranslate2}}
      replicas: {min: 2, max: 10}
      resources: {num_cpus: 4, num_gpus: 0.5}
    big.one:
      source: org/model
      revision: 0123abc
      backend: {vllm: {args: [--tensor-parallel-size, 2, --dtype, bfloat16], start_timeout_s: 1200}}
    pinned:
      version: 3
      backend: vllm
    outside:
      source: gpt
      backend: {openai: {url: "https://api.example.com:8443/v1", api_key_env: OUTSIDE_KEY}}
"""

# Generation by vLLM that follows an alias: every gateway starts its own.
FOLLOWS = """\
name: support
store: .penstock
observe: {retrain: {through: airflow}}
ledger: postgresql://penstock@db.example.org:6432/penstock
sources: {rows: {type: files, paths: [rows.jsonl]}}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
serve:
  keys: true
  metrics_port: null
  traces: {to: phoenix, endpoint: "http://phoenix.observe:6006"}
  models:
    support: {backend: {vllm: {python: /opt/vllm/bin/python}}, resources: {num_gpus: 1}}
"""

ALL = {"least": LEAST, "everything": EVERYTHING, "follows": FOLLOWS}
IMAGE = "registry.example.com/ml/penstock:0.1.0"


def loaded(folder: Path, text: str, *overrides: str):
    """The recipe, read as an export reads it."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_unexpanded(path, list(overrides), overrides_of(list(overrides)))


def exported(folder: Path, text: str, *overrides: str, **options):
    """Path -> text of an export for Kubernetes."""
    recipe = loaded(folder, text, *overrides)
    checked = KubernetesOptions.checked(recipe.recipe.name, **{"image": IMAGE, **options})
    return bundle(recipe, checked)
