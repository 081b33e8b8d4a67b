"""The loop closes by itself, with simulated users: ``make closed-loop``, a little shorter."""

import pytest
from benchmarks.closed_loop import play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # beside other tests


def test_users_change_and_one_retraining_later_they_get_right_answers(tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "false")
    told = play(tmp_path / "project", seed=1)
    assert told.windows_to_alarm is not None
    assert told.runs == ["PROMOTED"]
    assert (told.quality_before, told.serves) == (0.0, 2)
    assert told.quality_after >= 0.9
    assert told.quality_old_after >= 0.9
    assert told.recovered
    # What was learned from lies does not serve.
    assert told.poisoned == "BLOCKED"
    assert told.serves_after_poison == 2
