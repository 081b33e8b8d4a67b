"""Take the pictures of docs/how-to/console.md: a project of the tests, in Debian's Chromium.

Run it from the repository after a change of the pages:
``.venv/bin/python scripts/console_screenshots.py``.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME / "tests"))

from console_browser import chromium, serving  # noqa: E402
from console_project import ConsoleProject  # noqa: E402
from traffic_rows import Writers, asked, response_id  # noqa: E402

IMAGES = HOME / "docs" / "images"
SIZE = {"width": 1180, "height": 800}
# Name -> light or dark, and the page.
PICTURES = {
    "console-light": ("light", "/"),
    "console-dark": ("dark", "/versions/2/promote"),
    "console-alarms": ("light", "/alarms"),
    "console-traffic": ("dark", "/traffic"),
}


def main() -> None:
    """Write each picture."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        project = ConsoleProject(Path(folder))
        _talk(project)
        with serving(project) as url:
            for name, (scheme, page) in PICTURES.items():
                tab = browser.new_page(viewport=SIZE, color_scheme=scheme)
                tab.goto(f"{url}/console{page}")
                tab.screenshot(path=IMAGES / f"{name}.png", full_page=True)


def _talk(project: ConsoleProject) -> None:
    """Five minutes of made-up traffic, of which some in the last one fails."""
    chance, now_s = random.Random(3), time.time()  # noqa: S311
    facts = []
    for _ in range(900):
        ago_s = chance.uniform(0, 300)
        fails = ago_s < 60 and chance.random() < 0.2
        told = {"status": 503, "error": "backend_failed"} if fails else {}
        one = asked(response_id(), received_at_s=now_s - ago_s, prompt_tokens=41, **told)
        one.completion_tokens = chance.randrange(10, 90)
        one.ended_s = one.started_s + chance.expovariate(3)
        facts.append(one)
    Writers(project.pipeline.store.root).log(*facts)


if __name__ == "__main__":
    main()
