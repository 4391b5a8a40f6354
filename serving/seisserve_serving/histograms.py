"""Histograms that cost a call next to nothing: values are kept as they come, and counted many at a time."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from seisserve_serving.metric_table import Metric

__all__ = ["Histogram", "Series"]

MANY = 1024  # values of one series that may wait to be counted


class Histogram:
    """Values of a metric, counted by labels."""

    def __init__(self, metric: Metric) -> None:
        self._metric, self._bounds = metric, np.array(metric.buckets, np.float64)
        self._names = [*map(floatToGoString, metric.buckets), "+Inf"]
        self._series: dict[tuple[str, ...], Series] = {}

    def of(self, labels: tuple[str, ...]) -> Series:
        """The values with these labels."""
        series = self._series.get(labels)
        return self._series.setdefault(labels, Series(self._bounds)) if series is None else series

    def family(self) -> HistogramMetricFamily:
        """All of it, as Prometheus has it: of each bound, how many values are at most that."""
        family = HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)
        for labels, series in list(self._series.items()):
            counts, total = series.count()
            family.add_metric(labels, list(zip(self._names, np.cumsum(counts).tolist(), strict=True)), total)
        return family


class Series:
    """The values with one set of labels."""

    def __init__(self, bounds: NDArray[np.float64]) -> None:
        self._fresh: deque[float] = deque()  # those that are not counted yet
        self._bounds, self._lock = bounds, threading.Lock()
        self._counts, self._sum = np.zeros(len(bounds) + 1, np.int64), 0.0

    def observe(self, value: float) -> None:
        """Take note of a value."""
        self._fresh.append(value)
        if len(self._fresh) >= MANY:
            self.count()

    def count(self) -> tuple[NDArray[np.int64], float]:
        """How many values so far are in each bucket, and their sum."""
        with self._lock:
            values = [self._fresh.popleft() for _ in range(len(self._fresh))]
            self._counts = self._counts + np.bincount(
                np.searchsorted(self._bounds, values), minlength=len(self._counts)
            )
            self._sum += sum(values)
            return self._counts, self._sum
