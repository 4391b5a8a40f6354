"""Servers in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any


class Process(subprocess.Popen[str]):
    """`seisserve serve --port 0` in a process of its own; `address` is where."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "seisserve", "serve", "--port", "0", *options]
        super().__init__(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.stdout is not None
        line = self.stdout.readline()
        found = re.search(r"serving .* on (\S+)$", line.strip())
        assert found, line + (self.stderr.read() if self.stderr else "")
        self.address = found[1]

    def __exit__(self, *error: Any) -> None:
        if self.poll() is None:
            self.kill()  # the test has failed already; it must not wait for ever as well
        super().__exit__(*error)
