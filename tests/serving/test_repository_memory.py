"""What is unloaded gives its memory back: fifty reloads under load, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("reload_fifty.py")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, as Linux has it")
def test_fifty_reloads_under_load_fail_no_call_and_leave_the_memory_flat(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "phasenet"],
        capture_output=True,
        text=True,
        check=True,
        timeout=580,
    )
    early, late, one_copy, alive, failures = map(float, done.stdout.split())
    print(f"resident after 10 reloads {early} MB, after 50 {late} MB; one more copy of the model {one_copy} MB")
    assert failures == 0
    assert alive == 1  # the one that serves
    assert late - early < 10  # forty copies would be a multiple of that
