"""What a client takes for waveforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest

from seisserve.errors import UsageError
from seisserve.traces import to_traces


def test_traces_come_as_a_stream_as_a_list_or_alone() -> None:
    stream = obspy.read()
    ours = to_traces(stream)
    for given in (list(stream), ours, [stream[0], *ours[1:]]):
        for one, other in zip(to_traces(given), ours, strict=True):
            assert one[:3] == other[:3]
            np.testing.assert_array_equal(one.samples, other.samples)
    assert to_traces(stream[1])[0].id == to_traces(ours[1])[0].id == ours[1].id
    with pytest.raises(UsageError, match="expected an ObsPy Stream, or traces of ObsPy or seisserve, got int"):
        to_traces([7])  # type: ignore[list-item]


@pytest.mark.parametrize("given", ["day.mseed", Path("day.mseed")])
def test_a_file_is_to_be_read_first(given: Any) -> None:
    with pytest.raises(UsageError, match=r"or seisserve, got \w*(str|Path) \(read files with obspy\.read\)"):
        to_traces(given)
