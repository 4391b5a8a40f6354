"""What holds for all tests: no configuration of the machine's user, and no logging of another test."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)  # how long an example takes says nothing: machines pause
settings.load_profile("here")


@pytest.fixture(autouse=True, scope="session")
def no_configuration_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in place of the user's configuration, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("configuration")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CONFIG_HOME", "APPDATA"):
            patch.setitem(os.environ, variable, str(folder))
        yield folder


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    """The process's own logging after a test that served, and so chose another."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
