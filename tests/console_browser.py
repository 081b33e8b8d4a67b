"""Browsers on a console: one that is a few lines of HTTP, and Debian's Chromium."""

import asyncio
import re
import shutil
import socket
import threading
from contextlib import contextmanager

import httpx
import uvicorn

from penstock.console import create_console


class Browser:
    """Keeps cookies, sends an origin, and follows no redirect.

    Args:
        app: Asked in this process; None asks over the network.
        url: Where it is.
        auth: Name and password.
    """

    def __init__(self, app, url="http://127.0.0.1:8010", auth=None):
        self.app, self.url, self.auth = app, url, auth
        self.cookies = httpx.Cookies()

    def ask(self, method, path, data=None, **headers):
        async def send():
            transport = None if self.app is None else httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport,
                base_url=self.url,
                cookies=self.cookies,
                auth=self.auth,
                timeout=60,  # workers take a while to begin
            ) as client:
                answer = await client.request(method, path, data=data, headers=headers)
                self.cookies = client.cookies
                return answer

        return asyncio.run(send())

    def get(self, path, **headers):
        return self.ask("GET", f"/console{path}", **headers)

    def fields(self, path):
        """The hidden fields of the form on a page."""
        page = self.get(path).text
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))

    def post(self, path, data, **headers):
        return self.ask("POST", f"/console{path}", data, **{"origin": self.url, **headers})

    def confirm(self, path, reason="looked at it", **changed):
        """Open a form, and send it."""
        fields = {**self.fields(path), "reason": reason, **changed}
        return self.post(path.partition("?")[0], fields)


@contextmanager
def serving(project):
    """The project's console on a port of this machine; yields its address."""
    app = create_console(project.pipeline, production=project.production)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def chromium():
    """Debian's Chromium, which asks nobody for updates."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()
