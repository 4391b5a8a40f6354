"""What holds for all tests: what `seisserve tune` chose for the user of this machine does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_configuration_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in place of the user's configuration, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("configuration")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CONFIG_HOME", "APPDATA"):
            patch.setitem(os.environ, variable, str(folder))
        yield folder
