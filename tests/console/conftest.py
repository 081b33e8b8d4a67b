"""A project, its console, and a browser on it."""

import pytest

from console_browser import Browser
from console_project import ConsoleProject
from penstock.console import create_console


@pytest.fixture
def project(tmp_path):
    return ConsoleProject(tmp_path)


@pytest.fixture
def console(project):
    return create_console(project.pipeline, production=project.production)


@pytest.fixture
def browser(console):
    return Browser(console)
