"""Picks in real time are those of the whole record, every field bit for bit, however the packets come."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from client.waveforms import NS, START_NS, Array, fake, manifest, network, part, pieces, record
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.errors import ServerError, UsageError
from seisserve.growing import READ_S
from seisserve.manifest import Manifest
from seisserve.picks import WIDTH_REACH, Pick
from seisserve.pipeline import annotate, pick
from seisserve.realtime import Counts, Realtime, Settings, Update
from seisserve.resample import Phase
from seisserve.stretches import stretches
from seisserve.traces import Trace
from seisserve.transport import Arrays, FakeTransport

ALL_RATES = (20.0, 62.5, 100.0, 200.0, 250.0, 33.333333, 99.987)
LABELS = ("P", "S")


def in_frames(waveform: Array) -> Array:
    return network(waveform).reshape(len(waveform), -1, 4, 2).max(axis=2)


def single(waveform: Array) -> Array:
    return network(waveform)[:, 250:350].max(axis=1)


MODELS: dict[str, tuple[Manifest, FakeTransport]] = {
    "mean": (manifest(LABELS), fake()),
    "max": (manifest(LABELS, stacking="max", hop_samples=200, blinding_samples=100), fake(2)),
    "windowless": (manifest(LABELS, blinding_samples=150, hop_samples=300, edge_samples=100), fake()),
    "frames": (manifest(LABELS, stride=4, fragment_windows=()), FakeTransport(in_frames)),
    "single": (manifest(LABELS, single=True, hop_samples=40, fragment_windows=()), FakeTransport(single)),
}


class Heard(NamedTuple):
    """What a session has told: picks as they came, the last watermarks, and the last counts before the end."""

    picks: dict[str, list[Pick]]
    watermarks: dict[str, int]
    expired: list[str]
    warnings: list[str]
    counts: dict[str, Counts]
    most_held: int


class Listener:
    """Feeds a core, and checks that what it tells is in order and behind no watermark."""

    def __init__(self, core: Realtime, transport: Any) -> None:
        self.core, self.transport = core, transport
        self.heard = Heard({}, {}, [], [], {}, 0)
        self.now_s = 0.0

    def push(self, *traces: Trace, latest_ns: int | None = None) -> Update:
        self.core.push(traces, self.now_s, latest_ns)
        return self.work()

    def flush(self) -> Heard:
        self.core.flush()
        self.work()
        return self.heard

    def work(self) -> Update:
        update = self.core.work(self.transport)
        for found in update.picks:
            assert found.time_ns >= self.heard.watermarks.get(found.trace_id, -(2**63))
            told = self.heard.picks.setdefault(found.trace_id, [])
            assert not told or (told[-1].time_ns, told[-1].phase) < (found.time_ns, found.phase)
            told.append(found)
        for name, mark in update.watermarks.items():
            assert mark >= self.heard.watermarks.get(name, -(2**63))
        self.heard.watermarks.update(update.watermarks)
        self.heard.expired.extend(update.expired)
        self.heard.warnings.extend(update.warnings)
        self.heard.counts.update(self.core.counts)
        held = max((counts.held_bytes for counts in self.core.counts.values()), default=0)
        self.heard = self.heard._replace(most_held=max(self.heard.most_held, held))
        return update


def started(name: str = "mean", **options: Any) -> Listener:
    model, transport = MODELS[name]
    return Listener(Realtime(model, Settings(**options)), transport)


def batch(packets: Iterable[Trace], model: Manifest, transport: Any, phase: Phase = "zero") -> dict[str, list[str]]:
    """The picks of each instrument from all packets at once, as text (NaN is equal to itself there)."""
    groups: dict[str, list[Trace]] = {}
    for packet in packets:
        groups.setdefault(packet.id[:-1], []).append(packet)
    found = {name: pick(group, model, transport, phase=phase).picks for name, group in groups.items()}
    return {name: [repr(one) for one in picks] for name, picks in found.items() if picks}


def told(heard: Heard) -> dict[str, list[str]]:
    return {name: [repr(one) for one in picks] for name, picks in heard.picks.items()}


def contradicting(packet: Trace, rng: random.Random) -> Trace:
    samples = packet.samples.copy()
    samples[rng.randrange(len(samples))] += 1
    return packet._replace(samples=samples)


def network_of_packets(rng: random.Random, wait_s: float, conflicts: bool, seconds: float = 25.0) -> list[Trace]:
    """Packets of two stations in an order that the wait allows: some lost, some twice, some that overlap."""
    packets = []
    for station in range(2):
        rate_hz, codes = rng.choice(ALL_RATES), rng.choice(["ZNE", "ZNE", "Z", "Z12", "ZN"])
        start_ns = START_NS + rng.randrange(NS)
        for trace in record(rng.randrange(1000), seconds, rate_hz, codes, start_ns=start_ns):
            whole = trace._replace(id=f"XX.S{station}..HH{trace.id[-1]}")
            for packet in pieces(whole, [rng.randrange(1, len(whole.samples)) for _ in range(rng.randrange(40))]):
                lot = rng.random()
                packets += [] if lot < 0.05 else [packet] * (1 + (lot > 0.9))
                if 0.8 < lot < 0.9:
                    begin = rng.randrange(len(whole.samples))
                    other = part(whole, begin, begin + rng.randrange(1, 400))
                    packets.append(contradicting(other, rng) if conflicts else other)
    return sorted(packets, key=lambda packet: packet.start_ns + rng.random() * wait_s * NS)


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 2**32), conflicts=st.booleans())
@settings(max_examples=8, deadline=None)
def test_packets_in_any_order_give_the_picks_of_the_whole_record(name: str, seed: int, conflicts: bool) -> None:
    rng = random.Random(seed)
    model = MODELS[name][0].with_options({label: rng.uniform(0.05, 0.7) for label in LABELS})
    wait_s = rng.choice([0.0, 2.0, 8.0])
    packets = network_of_packets(rng, wait_s, conflicts)
    phase: Phase = "causal" if rng.random() < 0.3 else "zero"
    core = Realtime(model, Settings(wait_s=wait_s, conflicts="drop" if conflicts else "first"), phase)
    listener = Listener(core, MODELS[name][1])
    begin = 0
    while begin < len(packets):
        count = rng.choice([1, 1, 2, 5, 20])
        listener.push(*packets[begin : begin + count])
        begin += count
    heard = listener.flush()
    assert told(heard) == batch(packets, model, MODELS[name][1], phase)
    assert all(counts.late == 0 for counts in heard.counts.values())


class Failing:
    """A transport that fails now and then, before or after it has computed."""

    def __init__(self, inner: FakeTransport, rng: random.Random) -> None:
        self.inner, self.rng, self.lanes, self.batch_samples = inner, rng, inner.lanes, inner.batch_samples

    def predict(self, model: Manifest, inputs: Arrays) -> Arrays:
        if self.rng.random() < 0.4:
            raise ServerError("not now")
        return self.inner.predict(model, inputs)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_a_transport_that_fails_loses_nothing_and_doubles_nothing(seed: int) -> None:
    rng = random.Random(seed)
    packets = network_of_packets(rng, 2.0, False, seconds=20.0)
    model, transport = MODELS["windowless"]
    core = Realtime(model, Settings(wait_s=2.0))
    listener = Listener(core, Failing(transport, rng))

    def patiently() -> None:
        while True:
            try:
                listener.work()
                return
            except ServerError:
                if rng.random() < 0.5:
                    return  # more packets come meanwhile

    for packet in packets:
        core.push([packet], 0.0)
        patiently()
    core.flush()
    listener.transport = transport
    listener.work()
    assert told(listener.heard) == batch(packets, model, transport)


@pytest.mark.parametrize("name", MODELS)
def test_a_pick_comes_within_the_stated_time(name: str) -> None:
    """After its time a window, what its width is read from, and then until the label is off."""
    model, transport = MODELS[name]
    traces = record(3)
    curve, _ = annotate(traces, model, transport)
    longest = 0
    for label, reading in model.phases.items():
        on = stretches(curve.values[:, curve.labels.index(label)], curve.bounds, reading.threshold / 2)
        longest = max(longest, int((on.end - on.begin).max()))
    single_hop = model.hop_samples if model.output.single else 0
    samples = model.window_samples + WIDTH_REACH + single_hop + longest
    latest_s = samples / model.sampling_rate_hz + READ_S + model.minimum_pick_distance_s
    listener, found = started(name, wait_s=1.0), 0
    for packets in zip(*(pieces(trace, range(0, 6000, 25)) for trace in traces), strict=True):
        end_ns = packets[0].start_ns + 25 * NS // 100
        for one in listener.push(*packets).picks:
            found += 1
            assert end_ns - one.time_ns <= (latest_s + 0.25) * NS
    assert found > 5


def test_what_is_held_does_not_grow_with_the_record() -> None:
    """Of ten minutes as much as of one."""
    held = []
    for minutes in (1, 10):
        listener = started(wait_s=5.0)
        rows = [pieces(trace, range(0, len(trace.samples), 500)) for trace in record(0, 60.0 * minutes)]
        for packets in zip(*rows, strict=True):
            listener.push(*packets)
        held.append(listener.heard.most_held)
    assert held[1] <= held[0] * 1.2 < 300_000


def test_what_comes_too_late_is_dropped_and_counted() -> None:
    model, transport = MODELS["mean"]
    rows = [pieces(trace, range(0, 6000, 200)) for trace in record(1)]
    listener = started(wait_s=3.0)
    for packets in zip(*(row[:10] + row[12:] for row in rows), strict=True):
        listener.push(*packets)
    listener.push(*(row[10] for row in rows))  # 36 s late
    heard = listener.flush()
    (counts,) = heard.counts.values()
    assert (counts.received, counts.late, counts.gaps) == (3 * 5800, 3 * 200, 1)
    kept = [packet for row in rows for packet in row[:10] + row[12:]]
    assert told(heard) == batch(kept, model, transport)


def test_what_comes_twice_is_counted_and_changes_nothing() -> None:
    model, transport = MODELS["mean"]
    rows = [pieces(trace, range(0, 3000, 200)) for trace in record(1, 30.0)]
    listener = started(wait_s=3.0)
    for packets in zip(*rows, strict=True):
        listener.push(*packets)
        listener.push(*packets)
    for packets in zip(*rows, strict=True):
        listener.push(*packets)
    heard = listener.flush()
    (counts,) = heard.counts.values()
    assert (counts.duplicate, counts.late, counts.gaps) == (2 * 9000, 0, 0)
    assert told(heard) == batch([packet for row in rows for packet in row], model, transport)


def test_a_silent_instrument_ends_and_may_come_back_without_doubles() -> None:
    model, transport = MODELS["mean"]
    rows = [pieces(trace, range(0, 6000, 200)) for trace in record(5)]
    listener = started(wait_s=3.0, idle_s=60.0)
    for packets in zip(*(row[:15] for row in rows), strict=True):
        listener.push(*packets)
    listener.now_s = 59.0
    listener.core.expire(59.0)
    assert listener.work().expired == []
    listener.core.expire(60.0)
    assert listener.work().expired == ["XX.STA..HH"]
    assert listener.core.counts == {}
    first = told(listener.heard)
    assert first == batch([packet for row in rows for packet in row[:15]], model, transport)
    for packets in zip(*(row[10:] for row in rows), strict=True):  # some of them once more
        listener.push(*packets)
    heard = listener.flush()
    rest = batch([packet for row in rows for packet in row[15:]], model, transport)
    assert told(heard)["XX.STA..HH"] == first["XX.STA..HH"] + rest["XX.STA..HH"]


def test_silence_during_a_broken_connection_does_not_count() -> None:
    listener = started(idle_s=60.0)
    listener.push(*record(0, 5.0))
    listener.core.heard(100.0)
    listener.core.expire(120.0)
    assert listener.work().expired == []


def test_a_rate_may_change_within_a_channel() -> None:
    model, transport = MODELS["mean"]
    slow, fast = record(2, 40.0, 50.0), record(2, 40.0, 200.0)
    packets = [packet for row in slow for packet in pieces(part(row, 0, 1000), range(0, 1000, 90))]
    packets += [packet for row in fast for packet in pieces(part(row, 4000, 8000), range(0, 4000, 330))]
    packets.sort(key=lambda packet: packet.start_ns)
    for conflicts in ("first", "drop"):
        listener = started(wait_s=2.0, conflicts=conflicts)
        for packet in packets:
            listener.push(packet)
        assert told(listener.flush()) == batch(packets, model, transport)


def test_a_component_with_the_better_code_takes_the_place_as_in_a_whole_record() -> None:
    model, transport = MODELS["mean"]
    packets = record(4, 30.0, codes="3NEZ")
    listener = started(wait_s=60.0)
    for packet in packets:
        listener.push(packet)
    heard = listener.flush()
    assert told(heard) == batch(packets, model, transport)
    assert heard.warnings == pick(packets, model, transport).warnings


def test_packets_that_make_no_sense_are_told_of_and_the_rest_counts() -> None:
    model, transport = MODELS["mean"]
    good = record(1, 20.0)
    bad = good[0].samples.astype(np.float64)
    bad[7] = np.nan
    listener = started()
    listener.push(*good)
    listener.push(
        good[0]._replace(samples=bad),
        good[0]._replace(id="STA.HHZ"),
        good[0]._replace(sampling_rate_hz=0.0),
        good[0]._replace(samples=np.array(["a"])),
        good[0]._replace(id="XX.STA..HHH"),
        good[0]._replace(start_ns=START_NS + 10_000 * NS),
        latest_ns=START_NS + 100 * NS,
    )
    heard = listener.flush()
    for text in ("NaN or infinite", "NET.STA.LOC.CHA", "0.0 Hz", "expected integers", "no slot left", "latest time"):
        assert sum(text in warning for warning in heard.warnings) == 1
    assert told(heard) == batch(good, model, transport)
    assert heard.counts["XX.STA..HH"].refused_packets == 4


def test_the_number_of_instruments_and_of_samples_that_wait_is_bounded() -> None:
    listener = started(instruments=2, waiting_samples=1000)
    for name in ("A", "B", "C"):
        listener.push(*(trace._replace(id=f"XX.{name}..HH{trace.id[-1]}") for trace in record(0, 2.0)))
    assert listener.heard.warnings == ["XX.C..HH: not taken; the session has 2 instruments already"]
    update = listener.push(*(part(trace, 150, 200)._replace(id=f"XX.A..HH{trace.id[-1]}") for trace in record(0, 8.0)))
    assert sum("more than 1000 samples wait" in warning for warning in update.warnings) == 2


@pytest.mark.parametrize(
    "wrong", [{"wait_s": -1.0}, {"wait_s": float("nan")}, {"idle_s": 0.0}, {"conflicts": "last"}, {"instruments": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Realtime(MODELS["mean"][0], Settings(**wrong))


def test_a_model_that_does_not_pick_is_refused() -> None:
    with pytest.raises(UsageError, match="for detection"):
        Realtime(manifest(("detection",), task="detection"))


ODD = st.builds(
    Trace,
    st.sampled_from(["XX.ODD..HHZ", "XX.ODD..HHN", "XX.ODD..HH1", "XX.STA..HHZ", "XX.STA..HHé", "", "...", "a.b.c.d"]),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(START_NS - 10 * NS, START_NS + 10 * NS)),
    st.sampled_from([0.001, 0.3, 1.0, 99.987, 100.0, 100.01, 1e5, 0.0, -1.0, float("nan"), float("inf")]),
    st.builds(
        lambda kind, size, seed: np.random.default_rng(seed).normal(0, 100, size).astype(kind),
        st.sampled_from(["int8", "uint8", "int64", "float16", "float32", "float64", "longdouble", "bool", "complex64"]),
        st.integers(0, 300),
        st.integers(0, 5),
    ),
)


@given(odd=st.lists(ODD, max_size=12), conflicts=st.sampled_from(["first", "drop"]))
@settings(max_examples=40, deadline=None)
def test_nothing_that_comes_breaks_the_session_or_another_station(odd: list[Trace], conflicts: Any) -> None:
    model, transport = MODELS["mean"]
    good = [trace._replace(id=f"XX.GOOD..HH{trace.id[-1]}") for trace in record(1, 10.0)]
    listener = started(conflicts=conflicts, waiting_samples=200_000)
    for begin in range(0, len(odd), 3):
        listener.push(*odd[begin : begin + 3], latest_ns=START_NS + 3600 * NS)
    listener.push(*good)
    heard = listener.flush()
    assert told(heard)["XX.GOOD..HH"] == batch(good, model, transport)["XX.GOOD..HH"]
    assert heard.most_held < 20_000_000
