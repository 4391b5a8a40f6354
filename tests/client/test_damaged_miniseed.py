"""Damaged miniSEED is refused whoever reads what at the same time, and the process goes on."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obspy
import pytest

from seisserve.errors import WaveformError
from seisserve.miniseed import scan
from seisserve.reading import read_file, read_miniseed

RECORD = 512


def records(count: int = 3000) -> bytearray:
    samples = np.random.default_rng(1).integers(-(1 << 20), 1 << 20, count).astype(np.int32)
    content = io.BytesIO()
    trace = obspy.Trace(samples, {"network": "XX", "station": "STA", "channel": "HHZ", "sampling_rate": 100})
    trace.write(content, format="MSEED", reclen=RECORD, encoding="STEIM2")
    return bytearray(content.getvalue())


def complained_of() -> bytearray:
    """Records whose headers say that there are more blockettes than there are."""
    content = records()
    content[39::RECORD] = bytes([9]) * (len(content) // RECORD)
    return content


def read_by_many(seconds_: str) -> None:
    """Good and damaged records on many threads. Ends the process where they are not kept apart."""
    good, bad = bytes(records()), bytes(complained_of() * 20)

    def read(number: int) -> None:
        for _ in range(int(seconds_)):
            if number % 2:
                assert sum(len(trace.samples) for trace in read_miniseed(good)) == 3000
            else:
                with pytest.raises(WaveformError, match="damaged"):
                    read_miniseed(bad)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(64)))


def test_damaged_and_good_records_read_at_the_same_time_are_kept_apart() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {Path(__file__).stem} as here; "
    command = [sys.executable, "-c", code + "here.read_by_many('3')"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]


def test_what_obspy_loses_for_the_codes_in_it_is_told_of() -> None:
    content = complained_of()
    content[8::RECORD] = b"\xff" * (len(content) // RECORD)
    with pytest.raises(WaveformError, match="damaged"):
        read_miniseed(bytes(content))


@pytest.mark.parametrize("exponent", [0, 1, 5, 6, 31, 63, 64, 255])
def test_a_length_of_records_that_cannot_be_is_left_to_obspy(tmp_path: Path, exponent: int) -> None:
    content = records()
    content[54::RECORD] = bytes([exponent]) * (len(content) // RECORD)
    (tmp_path / "x.mseed").write_bytes(content)
    assert scan(tmp_path / "x.mseed") is None
    with pytest.raises(WaveformError):
        read_file(tmp_path / "x.mseed")


@pytest.mark.parametrize("content", [b"x" * 600, bytes(records())[:100], b"\0" * 512])
def test_what_is_no_record_is_refused_without_where_it_is_in_memory(content: bytes) -> None:
    with pytest.raises(WaveformError, match=r"^miniseed: ") as caught:
        read_miniseed(content)
    assert " at 0x" not in str(caught.value)
