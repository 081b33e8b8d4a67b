"""Take the pictures of docs/how-to/console.md: a project of the tests, in Debian's Chromium.

Run it from the repository after a change of the pages:
``.venv/bin/python scripts/console_screenshots.py``.
"""

import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME / "tests"))

from console_browser import chromium, serving  # noqa: E402
from console_project import ConsoleProject  # noqa: E402

IMAGES = HOME / "docs" / "images"
SIZE = {"width": 1180, "height": 800}


def main() -> None:
    """Write one picture in light, and one in dark."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        project = ConsoleProject(Path(folder))
        with serving(project) as url:
            for scheme, page in (("light", "/"), ("dark", "/versions/2/promote")):
                tab = browser.new_page(viewport=SIZE, color_scheme=scheme)
                tab.goto(f"{url}/console{page}")
                tab.screenshot(path=IMAGES / f"console-{scheme}.png", full_page=True)


if __name__ == "__main__":
    main()
