"""Run by Dagster's own Python: a file's job in this process, or its sensor once.

Reads what is wanted as JSON lines, and answers each with one.
"""

import json
import runpy
import sys

import dagster as dg

KEPT = ("STEP_", "ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION")


def told(event):
    """An event in the words that tests ask for."""
    data = event.event_specific_data
    found = {"type": event.event_type_value, "stage": (event.step_key or "").split("__")[-1]}
    if event.event_type_value == "ASSET_CHECK_EVALUATION":
        found |= {"check": data.check_name, "passed": data.passed}
    if event.event_type_value == "ASSET_MATERIALIZATION":
        metadata = data.materialization.metadata
        found["metadata"] = {name: str(value.value) for name, value in metadata.items()}
    return found


def main(file, wanted):
    repository = runpy.run_path(file)["defs"].get_repository_def()
    (job,) = [one for one in repository.get_all_jobs() if not one.name.startswith("__")]
    instance = dg.DagsterInstance.get()
    if "sensor" in wanted:
        (sensor,) = repository.sensor_defs
        with dg.build_sensor_context(instance=instance) as context:
            tick = sensor.evaluate_tick(context)
        return [{"key": one.run_key, "tags": one.tags} for one in tick.run_requests or ()]
    config = {"resources": {f"{job.name}_run": {"config": {"set": wanted.get("set", {})}}}}
    done = job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        tags=wanted.get("tags"),
        run_config=config,
        asset_selection=[dg.AssetKey(one) for one in wanted["only"]] if "only" in wanted else None,
    )
    events = [told(one) for one in done.all_events if one.event_type_value.startswith(KEPT)]
    return {"success": done.success, "run_id": done.run_id, "events": events}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(main(sys.argv[1], json.loads(line))), flush=True)
