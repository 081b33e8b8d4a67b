"""What is in the ledger and on no page."""

from rollout_world import MODEL


def test_a_secret_that_was_typed_into_the_recipe_is_not_shown(project, browser):
    written = f"name: {MODEL}\nledger: postgresql://ann:hunter2@db/p\n"
    run = project.ledger.start_run(MODEL, written, "", {"sources.x.password": "hunter2"})
    page = browser.get(f"/runs/{run.id}").text
    assert "hunter2" not in page
    assert "postgresql://[SECRET]@db/p" in page
