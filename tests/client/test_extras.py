"""Optional packages: a missing one is one line with the command that brings it; none phones home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from seisserve.errors import MissingExtra
from seisserve.extras import need


def test_a_missing_package_is_named_with_the_command() -> None:
    with pytest.raises(MissingExtra, match=r"no_such_package is not installed.*pip install 'seisserve\[edge\]'"):
        need("no_such_package", "edge")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnxruntime_is_told_not_to_report_unless_the_user_has_decided(before: str | None, after: str) -> None:
    code = "import os; from seisserve.extras import need; need('onnxruntime', 'edge'); "
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    shown = subprocess.run(
        [sys.executable, "-c", code + "print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == after
