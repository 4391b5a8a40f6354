"""Properties of chains: recover, denoise, then pick and detect, on networks that are a formula."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from client.small_bundles import waveform_model
from client.waveforms import Array, fake, manifest, network, part, record, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve import pipeline
from seisserve.chain import Options, Outcome, Stage, process, provenances, returned, with_options
from seisserve.errors import UsageError, WaveformError
from seisserve.manifest import Manifest
from seisserve.restoration import restore
from seisserve.traces import Trace
from seisserve.transport import FakeTransport, Transport

PICK = manifest(edge_samples=50)
DETECT = manifest(("detection", "P"), edge_samples=50)
RECOVER, DENOISE = waveform_model("same", "recovery", blinding_samples=50), waveform_model("half", "denoising")
MODELS: dict[Stage, Manifest] = {"recover": RECOVER, "denoise": DENOISE, "pick": PICK, "detect": DETECT}


def louder(waveform: Array) -> Array:
    return np.where(np.abs(waveform) > 1500, waveform * np.float32(1.5), waveform)


def halved(waveform: Array) -> Array:
    """Half of it, more or less: what depends on the whole window and on the place in it."""
    place = np.linspace(0.4, 0.6, waveform.shape[1], dtype=np.float32)[:, None]
    return waveform * place * (1 + 1 / (2 + np.abs(waveform).max(axis=(1, 2), keepdims=True)))


TRANSPORTS: dict[Stage, Transport] = {
    "recover": FakeTransport(louder), "denoise": FakeTransport(halved), "pick": fake(), "detect": fake(),
}  # fmt: skip
SAME = FakeTransport(lambda waveform: waveform)


def stages(*names: Stage) -> dict[Stage, tuple[Manifest, Transport]]:
    return {name: (MODELS[name], TRANSPORTS[name]) for name in names}


@st.composite
def records(draw: st.DrawFn) -> list[Trace]:
    """Of one station at any rate, with components that come and go, and samples that got lost, in one or in all."""
    rate = draw(st.sampled_from([40.0, 100.0, 200.0, 500.0]))
    codes = draw(st.sampled_from(["ZNE", "Z12", "Z", "NE", "ZNE1"]))
    late = draw(st.integers(-4000, 4000)) * 1000
    whole = [t._replace(start_ns=t.start_ns + late) for t in record(draw(seeds), 20, rate, codes)]
    length = len(whole[0].samples)
    places = st.lists(st.tuples(st.integers(1, length), st.sampled_from([1, 2, 3, 500])), max_size=3)
    everywhere, found = draw(places), []
    for trace in whole:
        edges = sorted({(0, 0), (length, 0), *everywhere, *draw(places)})
        for (begin, lost), (end, _) in pairwise(edges):
            found.append(part(trace, min(begin + lost, end), end))
    return draw(st.permutations([trace for trace in found if len(trace.samples)]))


@given(traces=records())
@settings(max_examples=60, deadline=None)
def test_after_a_stage_that_changes_nothing_everything_is_as_without_it(traces: list[Trace]) -> None:
    found = process(traces, {"recover": (RECOVER, SAME), **stages("pick", "detect")})
    picks, detections = pipeline.pick(traces, PICK, fake()), pipeline.detect(traces, DETECT, fake())
    assert repr(found.picks) == repr(picks.picks)
    assert found.detections == detections.detections
    assert found.warnings == list(dict.fromkeys(picks.warnings))


@given(seed=seeds, names=st.sets(st.sampled_from(["recover", "denoise", "pick", "detect"]), min_size=1))
@settings(max_examples=30, deadline=None)
def test_a_chain_is_the_calls_one_after_the_other(seed: int, names: set[Stage]) -> None:
    z, n, e = record(seed, 30)
    given_traces = [part(z, 0, 1200), part(z, 1210, 3000), n, part(e, 0, 2500)]
    chosen = [name for name in MODELS if name in names]
    found = process(given_traces, stages(*chosen), keep=chosen)
    traces = given_traces
    for name in chosen:
        if name in ("recover", "denoise"):
            made, _ = restore(traces, MODELS[name], TRANSPORTS[name])
            traces = [trace for item in made for trace in item.traces()]
            assert [t[:3] for t in found.waveforms[name]] == [t[:3] for t in traces]
            for ours, theirs in zip(found.waveforms[name], traces, strict=True):
                assert ours.samples.dtype == theirs.samples.dtype
                np.testing.assert_array_equal(ours.samples, theirs.samples)
    assert repr(found.picks) == repr(pipeline.pick(traces, PICK, fake()).picks if "pick" in names else [])
    assert found.detections == (pipeline.detect(traces, DETECT, fake()).detections if "detect" in names else [])


def test_the_stages_do_matter() -> None:
    counts = [repr(process(record(3, 60), stages(*names)).picks) for names in (
        ("pick",), ("recover", "pick"), ("denoise", "pick"), ("recover", "denoise", "pick"),
    )]  # fmt: skip
    assert len(set(counts)) == 4
    assert "[]" not in counts


def test_waveforms_that_come_in_are_never_changed() -> None:
    for dtype in ("int32", "float32", "float64"):
        traces = record(1, 20, dtype=dtype)
        before = [trace.samples.copy() for trace in traces]
        for trace in traces:
            trace.samples.flags.writeable = False
        found = process(traces, stages("recover", "denoise", "pick", "detect"), keep=["recover", "denoise"])
        assert found.picks
        for trace, samples in zip(traces, before, strict=True):
            np.testing.assert_array_equal(trace.samples, samples)
            assert not any(np.shares_memory(trace.samples, t.samples) for ts in found.waveforms.values() for t in ts)


def test_no_stage_sees_across_a_gap_shorter_than_a_sample() -> None:
    """At 500 Hz four of five lost samples leave no gap at 100 Hz."""
    traces = [piece for t in record(0, 20, 500.0) for piece in (part(t, 0, 5002), part(t, 5003, 10_000))]
    found = process(traces, stages("recover", "denoise", "pick"), keep=["denoise"])
    ends = {(t.start_ns, len(t.samples)) for t in found.waveforms["denoise"]}
    start = traces[0].start_ns
    assert ends == {(start, 1001), (start + 10_010_000_000, 999)}
    near = [pick for pick in found.picks if abs(pick.time_ns - start - 10_005_000_000) < 400_000_000]
    assert all("edge" in pick.flags for pick in near)


def test_many_gaps_do_not_make_many_calls() -> None:
    calls: list[int] = []

    def counted(waveform: Array) -> Array:
        calls.append(len(waveform))
        return network(waveform)

    traces = [piece for t in record(0, 300) for piece in (part(t, k * 100, k * 100 + 95) for k in range(300))]
    process(traces, {**stages("recover", "denoise"), "pick": (PICK, FakeTransport(counted))})
    assert sum(calls) == 300
    assert len(calls) <= 2


def test_missing_components_stay_missing() -> None:
    found = process(record(0, 20, codes="Z1"), stages("recover", "denoise", "pick"), keep=["recover", "denoise"])
    assert found.picks
    assert all(pick.flags[-1] == "missing_E" for pick in found.picks)
    assert {pick.trace_id for pick in found.picks} == {"XX.STA..HH"}
    for made in found.waveforms.values():
        assert [trace.id[-1] for trace in made] == ["Z", "1"]


def test_what_stages_say_of_the_same_trace_is_said_once() -> None:
    traces = [*record(0, 20), record(0, 20)[0]._replace(id="XX.STA..HHH")]
    assert [w.split(":")[0] for w in process(traces, stages("pick", "detect")).warnings] == ["XX.STA..HHH"]
    other = [part(t, 100, 200)._replace(samples=part(t, 100, 200).samples + 1) for t in record(0, 20)]
    found = process([*traces, *other], stages("recover", "denoise", "pick", "detect"))
    assert sorted(w.split(":")[0] for w in found.warnings) == [f"XX.STA..HH{code}" for code in "EHNZ"]


def test_a_stage_whose_waveforms_cannot_be_used_is_an_error_that_names_the_trace() -> None:
    broken = FakeTransport(lambda waveform: np.full_like(waveform, np.nan))
    with pytest.raises(WaveformError, match=r"HHZ: 2000 of 2000 samples are NaN"):
        process(record(0, 20), {"denoise": (DENOISE, broken), **stages("pick")})


@pytest.mark.parametrize("names", [("recover",), ("denoise", "pick"), ("recover", "denoise", "pick", "detect")])
def test_no_samples_give_nothing(names: tuple[Stage, ...]) -> None:
    nothing = [t._replace(samples=t.samples[:0]) for t in record(0, 1)]
    for traces in ([], nothing):
        assert process(traces, stages(*names)) == Outcome({}, [], [], [])


def test_which_waveforms_come_back() -> None:
    assert returned(["recover", "denoise", "pick"], False) == []
    assert returned(["recover", "denoise", "pick"], True) == ["recover", "denoise"]
    assert returned(["recover", "denoise"], False) == ["denoise"]
    assert returned(["recover", "denoise"], True) == ["recover", "denoise"]
    assert returned(["recover"], False) == ["recover"]
    assert returned(["pick", "detect"], True) == []


def test_a_stage_has_its_own_provenance_and_that_of_the_stages_before_it() -> None:
    alone = provenances({"pick": PICK, "detect": DETECT})
    assert alone == {"pick": pipeline.provenance(PICK), "detect": pipeline.provenance(DETECT)}
    every = provenances(MODELS)
    assert every["recover"] == pipeline.provenance(RECOVER)
    others = [
        alone, every, provenances({"denoise": DENOISE, "pick": PICK}), provenances({"recover": RECOVER, "pick": PICK}),
        provenances(MODELS, "causal"),
    ]  # fmt: skip
    assert len({digests["pick"] for digests in others}) == len(others)
    other = provenances({**MODELS, "pick": PICK.with_options({"P": 0.9})})
    assert [stage for stage in MODELS if other[stage] != every[stage]] == ["pick"]


def test_options_are_for_the_stages_that_have_them() -> None:
    found = with_options(MODELS, Options({"P": 0.1, "detection": 0.7}, 200, "max"))
    assert list(found) == ["recover", "denoise", "pick", "detect"]
    assert (found["recover"], found["denoise"]) == (RECOVER, DENOISE)
    assert found["pick"] == PICK.with_options({"P": float(np.float32(0.1))}, 200, "max")
    assert found["detect"] == DETECT.with_options({"detection": float(np.float32(0.7))}, 200, "max")
    assert list(with_options(dict(reversed(MODELS.items())), Options())) == list(MODELS)


WRONG: list[tuple[list[Stage], dict[str, Any], str]] = [
    ([], {}, "no stage is asked for; there is recover, denoise, pick, detect"),
    (["recover", "denoise"], {"thresholds": {"P": 0.5}}, "thresholds: for picking and detection, and neither"),
    (["denoise"], {"hop_samples": 5, "stacking": "max"}, "hop_samples, stacking: for picking and detection"),
    (["pick"], {"thresholds": {"detection": 0.5}}, "threshold for 'detection': pick have P, S"),
    (["detect"], {"thresholds": {"P": 0.5}}, "threshold for 'P': detect have detection"),
    (["pick", "detect"], {"thresholds": {"Pn": 0.5}}, "'Pn': pick and detect have P, S, detection"),
    (["pick"], {"thresholds": {"P": 1.5}}, "threshold for P is 1.5"),
    (["pick"], {"thresholds": {"P": float("nan")}}, "threshold for P is nan"),
    (["pick"], {"hop_samples": 9999}, "hop_samples is 9999"),
    (["pick"], {"hop_samples": 0}, "hop_samples is 0"),
    (["detect"], {"stacking": "sum"}, "stacking is 'sum'"),
]


@pytest.mark.parametrize(("names", "options", "text"), WRONG)
def test_options_that_no_stage_has_are_refused(names: list[Stage], options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        with_options({name: MODELS[name] for name in names}, Options(**options))
