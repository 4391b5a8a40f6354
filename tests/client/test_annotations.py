"""Curves as an ObsPy stream: a letter of its own for each label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seisserve.annotations import Annotation, channel_letters, to_stream


@pytest.mark.parametrize(
    ("labels", "letters"),
    [
        (("N", "P", "S"), ["N", "P", "S"]), (("detection", "P", "S"), ["D", "P", "S"]), (("detection",), ["D"]),
        (("P", "Pg", "Pn"), ["P", "G", "N"]), (("D", "detection"), ["D", "E"]), (("D", "dd"), ["D", "A"]),
    ],
)  # fmt: skip
def test_the_letter_is_the_label_or_the_first_of_it_that_is_free(labels: tuple[str, ...], letters: list[str]) -> None:
    assert channel_letters(labels) == letters


@given(st.lists(st.text("abPS_-", min_size=1, max_size=4), unique=True, max_size=12))
def test_no_two_labels_share_a_letter(labels: list[str]) -> None:
    letters = channel_letters(tuple(labels))
    assert len(set(letters)) == len(labels)
    assert all(len(letter) == 1 for letter in letters)


def test_channels_are_named_by_instrument_and_letter() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    stream = to_stream([Annotation("XX.STA.00.HH", 10**18, 50.0, ("detection", "P"), values)])
    assert [trace.id for trace in stream] == ["XX.STA.00.HHD", "XX.STA.00.HHP"]
    assert all((trace.stats.starttime.ns, trace.stats.sampling_rate) == (10**18, 50.0) for trace in stream)
    np.testing.assert_array_equal([trace.data for trace in stream], values.T)
