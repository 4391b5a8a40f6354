"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains, with the arguments of `training.train`, and is stopped after the first epoch."""

    def train(*arguments: Any) -> None:
        from seisserve_training import training

        def stop(folder: Path, epoch: training.History) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(training, "record", stop)
            with pytest.raises(KeyboardInterrupt):
                training.train(*arguments)

    return train
