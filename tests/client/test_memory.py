"""What is freed goes back to the system, or is kept for what comes next."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from seisserve.memory import give_back, keep
if sys.argv[1] == "keep":
    keep()
def used():
    np.ones(6_000_000, np.uint8)
used(); used()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    used()
    if sys.argv[1] == "give back":
        give_back()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    """Pages that the system had to give while 6 MB were taken and freed 50 times."""
    shown = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True)
    return int(shown.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's memory is looked after on Linux only")
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    kept, given_back = faults("keep"), faults("give back")
    assert kept < 500  # 6 MB are 1,465 pages
    assert given_back > 10 * max(kept, 1000)
