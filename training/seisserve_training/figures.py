"""Figures of an evaluation: plain rows that tables, files and manifests are made from."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Figure"]


class Figure(NamedTuple):
    """One measured number.

    source: the part of the data, `all` for the whole; method: the model, or what it is compared with; interval: 95 %,
    bootstrap over traces, None where there is none; n: traces (or labels) that it comes from; unit: `dB`, `%`, `s`, or
    empty for a plain ratio.
    """

    source: str
    method: str
    quantity: str
    value: float
    interval: tuple[float, float] | None
    n: int
    unit: str
