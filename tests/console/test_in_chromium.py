"""A person with a keyboard: looks at the loop, reads the gate's report, promotes a version."""

import shutil
import time

import pytest

from console_browser import chromium, serving
from console_project import ConsoleProject
from penstock.ledger.alarms import Alarms, AlarmState
from rollout_world import MODEL
from traffic_rows import Writers, asked, response_id

pytest.importorskip("playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Debian's chromium is not installed"),
]


class Keyboard:
    """What a person without a mouse does."""

    def __init__(self, page):
        self.page = page

    def to(self, name):
        """Press Tab until the link or button of this name has the focus."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if name in self.page.evaluate("document.activeElement.textContent"):
                return self
        raise AssertionError(f"no Tab leads to {name!r} on {self.page.url}")

    def enter(self):
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")


def contrast(page, selector):
    """The contrast of an element's text with the card it is on, by WCAG 2."""
    colours = page.evaluate(
        """selector => {
            const element = document.querySelector(selector);
            const card = element.closest("section, header");
            return [getComputedStyle(element).color, getComputedStyle(card).backgroundColor];
        }""",
        selector,
    )
    light, dark = sorted(map(_luminance, colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_version_is_promoted_by_keyboard_and_nothing_leaves_this_host(tmp_path):
    project = ConsoleProject(tmp_path, "<script>alert(1)</script>")
    with serving(project) as url, chromium() as browser:
        page = browser.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        keyboard = Keyboard(page)

        page.goto(f"{url}/console/")
        assert page.locator("h1").text_content() == "The loop"
        keyboard.to("Skip to the content").to("Gates").enter()
        keyboard.to("Decision").enter()
        keyboard.to("The whole report").enter()
        assert page.locator("svg").count() > 0
        page.go_back()
        keyboard.to("Versions").enter()
        keyboard.to("version 2").enter()
        page.wait_for_selector("#reason:focus")  # at once, without a Tab
        page.keyboard.type("better on the new topic")
        keyboard.to("Promote version 2").enter()
        assert page.url.endswith("/console/versions?done=promoted")
        assert "The pointer has moved" in page.locator("[role=status]").text_content()

        assert project.serving == 2
        assert project.ledger.history(MODEL)[-1].reason == "better on the new topic"
        assert said == []
        assert {one.startswith((f"{url}/console", "data:,")) for one in asked} == {True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_in_dark(tmp_path, scheme):
    project = ConsoleProject(tmp_path)
    Writers(project.pipeline.store.root).log(asked(response_id(), received_at_s=time.time()))
    with serving(project) as url, chromium() as browser:
        page = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 700})
        for path in ("/", "/traffic", "/alarms", "/alarms/4", "/drift", "/feedback"):
            page.goto(f"{url}/console{path}")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (_luminance(background) > 0.5) == (scheme == "light")
            for selector in (".word", ".soft", "td", "section a", "nav a"):
                if path == "/" or page.locator(selector).count():
                    assert contrast(page, selector) >= 4.5, (path, selector)
            # A narrow window scrolls tables, not the page.
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
            headers = page.locator("thead th")
            assert headers.count() == page.locator("thead th[scope=col]").count(), path


def test_an_alarm_is_vetoed_by_keyboard_and_traffic_moves_by_itself(tmp_path):
    project = ConsoleProject(tmp_path)
    writers = Writers(project.pipeline.store.root)
    with serving(project) as url, chromium() as browser:
        page = browser.new_page(java_script_enabled=False)
        keyboard = Keyboard(browser.new_page())
        keyboard.page.goto(f"{url}/console/")
        keyboard.to("Alarms").enter()
        keyboard.to("4").enter()
        keyboard.to("Veto").enter()
        keyboard.page.wait_for_selector("#reason:focus")
        keyboard.page.keyboard.type("it was a test of ours")
        keyboard.to("Veto alarm 4").enter()
        assert "No run starts for it" in keyboard.page.locator("[role=status]").text_content()
        assert Alarms(project.ledger).find(4).state is AlarmState.VETOED

        page.goto(f"{url}/console/traffic")
        assert "No request was written down" in page.content()
        writers.log(asked(response_id(), received_at_s=time.time(), model="seen-live"))
        page.get_by_text("seen-live").wait_for(timeout=60_000)
