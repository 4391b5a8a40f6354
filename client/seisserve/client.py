"""The client: waveforms in, picks, detections, curves or waveforms out, from a server or in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

from seisserve import bundle, chain, pipeline, runtime
from seisserve import restoration as restorations
from seisserve import tuned as tuning
from seisserve.access import Access
from seisserve.annotations import Annotation, from_curve
from seisserve.chain import STAGES, Options, Stage
from seisserve.errors import BundleError, UsageError, WaveformError
from seisserve.manifest import Manifest, Task, check_task
from seisserve.resample import Phase
from seisserve.restoration import Restoration
from seisserve.results import Origin, Processed, Waveforms
from seisserve.runtimes.setup import checked_precision
from seisserve.segments import by_instrument
from seisserve.tables import Detections, Picks
from seisserve.traces import Trace, handed_over, is_stream, to_obspy, to_traces
from seisserve.transport import Transport

if TYPE_CHECKING:
    from obspy import Stream

    from seisserve.picks import Pick
    from seisserve.remote import Remote
    from seisserve.session import Session

__all__ = ["DEFAULT_MODELS", "Client", "Model"]

DEFAULT_MODELS: dict[Task, str] = {
    "picking": "onset", "detection": "eqtransformer", "denoising": "deepdenoiser", "recovery": "recovery",
}  # fmt: skip
OnError = Literal["raise", "skip"]


class Model(NamedTuple):
    """A model version and the transport that runs it."""

    version: int
    manifest: Manifest
    transport: Transport


class Client:
    """Picks, detections, curves and restored waveforms from waveforms.

    server: HOST:PORT of a seisserve server; without one the models run in this process (extra `edge`).
    The rest is for use in this process. repository: folder of models, by default those that come with seisserve.
    runtime: onnxruntime (the default), openvino or tensorflow; threads: calls that run at once, by default one for each
    processor; precision: float32 (the default), int8, float16, weights8 or best; providers: of onnxruntime, by
    preference (tensorrt, cuda, openvino, cpu). Where none of these four is given and `tuned` is true, what `seisserve
    tune` chose for the model on this machine holds. timeout_s: for each call to a server.
    A client may be shared by threads; close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        repository: str | Path | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        providers: Iterable[str] | None = None,
        tuned: bool = True,
        timeout_s: float = 60.0,
        access: Access | None = None,
    ) -> None:
        if server is None and access is not None:
            raise UsageError("access says how to reach a server, and none is named")
        if server is not None and repository is not None:
            raise UsageError("server and repository exclude one another: a server has its own models")
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1")
        self._repository = None if repository is None else Path(repository)
        if precision is not None:
            checked_precision(precision)
        options = (runtime, threads, precision, None if providers is None else tuple(providers))
        if server is not None and any(option is not None for option in options[2:]):
            raise UsageError("precision and providers are for models in this process; a server has its own")
        self._options, self._tuned = options, tuned
        self._models: dict[str, Model] = {}
        self._remote: Remote | None = None
        if server is not None:
            from seisserve.remote import Remote  # gRPC is only loaded where it is used

            self._remote = Remote(server, timeout_s, access)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._remote is not None:
            self._remote.close()

    def model(self, model: str = DEFAULT_MODELS["picking"], task: Task | None = None) -> Model:
        """A model by NAME or NAME:VERSION, loaded when first asked for. Raises ModelNotFound, BundleError.

        task: what it is wanted for; UsageError, with the names of models that fit, if it cannot do that.
        """
        if model not in self._models:
            self._models[model] = self._load(model)
        if task is not None:
            check_task(self._models[model].manifest, task, self._manifests)
        return self._models[model]

    def pick(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str = DEFAULT_MODELS["picking"],
        thresholds: dict[str, float] | None = None,
        hop_samples: int | None = None,
        stacking: Literal["mean", "max"] | None = None,
        resampling: Phase = "zero",
        on_error: OnError = "raise",
    ) -> Picks:
        """Arrival times in the waveforms of any number of stations, in order of station and time.

        waveforms: an ObsPy Stream, or traces (`seisserve.from_arrays` makes them). thresholds: by phase, in place of
        the model's own; hop_samples: from window to window; stacking: mean or max of overlapping windows; resampling:
        `zero` (zero-phase) or `causal`. on_error: `skip` leaves out instruments whose waveforms cannot be used, and
        has their errors in the result's `errors`; `raise` raises WaveformError at the first.
        """
        chosen = self.model(model, "picking")
        manifest = chosen.manifest.with_options(thresholds, hop_samples, stacking)
        picks = Picks([], manifest.name, chosen.version, pipeline.provenance(manifest, resampling))

        def work(traces: Iterable[Trace]) -> None:
            result = pipeline.pick(traces, manifest, chosen.transport, phase=resampling)
            picks.extend(result.picks)
            picks.warnings.extend(result.warnings)

        picks.errors.extend(_each_instrument(waveforms, work, on_error))
        return picks

    def detect(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str = DEFAULT_MODELS["detection"],
        thresholds: dict[str, float] | None = None,
        hop_samples: int | None = None,
        stacking: Literal["mean", "max"] | None = None,
        resampling: Phase = "zero",
        on_error: OnError = "raise",
    ) -> Detections:
        """Stretches of earthquake signal in the waveforms of any number of stations, in order of station and time.

        Options as for `pick`; the threshold's label is `detection`.
        """
        chosen = self.model(model, "detection")
        manifest = chosen.manifest.with_options(thresholds, hop_samples, stacking)
        detections = Detections([], manifest.name, chosen.version, pipeline.provenance(manifest, resampling))

        def work(traces: Iterable[Trace]) -> None:
            result = pipeline.detect(traces, manifest, chosen.transport, phase=resampling)
            detections.extend(result.detections)
            detections.warnings.extend(result.warnings)

        detections.errors.extend(_each_instrument(waveforms, work, on_error))
        return detections

    def denoise(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str = DEFAULT_MODELS["denoising"],
        hop_samples: int | None = None,
        resampling: Phase = "zero",
    ) -> Stream | list[Trace]:
        """The waveforms without their noise: an ObsPy Stream for a Stream, traces for traces.

        float32, in units of the input, without its offset, at the rate of the model; a trace for each recorded
        component of each gapless segment. Options as for `pick`. Raises WaveformError. (`restore` has the noise, too.)
        """
        self.model(model, "denoising")
        made = self.restore(waveforms, model=model, hop_samples=hop_samples, resampling=resampling)
        return to_obspy(made.traces()) if is_stream(waveforms) else made.traces()

    def recover(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str = DEFAULT_MODELS["recovery"],
        hop_samples: int | None = None,
        resampling: Phase = "zero",
    ) -> Stream | list[Trace]:
        """The waveforms with what the instrument clipped: an ObsPy Stream for a Stream, traces for traces.

        float64, in units of the input; samples that were not clipped are exactly as they were, unless the waveforms had
        to be resampled to the rate of the model. A trace for each recorded component of each gapless segment. Options
        as for `pick`. Raises WaveformError.
        """
        self.model(model, "recovery")
        made = self.restore(waveforms, model=model, hop_samples=hop_samples, resampling=resampling)
        return to_obspy(made.traces()) if is_stream(waveforms) else made.traces()

    def restore(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str,
        hop_samples: int | None = None,
        resampling: Phase = "zero",
        on_error: OnError = "raise",
    ) -> Restoration:
        """What a model for denoising or recovery makes of the waveforms, with all that there is to know about it.

        Its `traces()` are the waveforms, `removed()` is what was taken from them. Options as for `pick`.
        """
        chosen = self.model(model)
        if not chosen.manifest.gives_waveforms:
            check_task(chosen.manifest, "denoising", self._manifests)
        manifest = chosen.manifest.with_options(None, hop_samples)
        made = Restoration([], manifest.name, chosen.version, pipeline.provenance(manifest, resampling))

        def work(traces: Iterable[Trace]) -> None:
            restored, warnings = restorations.restore(traces, manifest, chosen.transport, phase=resampling)
            made.extend(restored)
            made.warnings.extend(warnings)

        made.errors.extend(_each_instrument(waveforms, work, on_error))
        return made

    def process(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        recover: str | bool = False,
        denoise: str | bool = False,
        pick: str | bool = False,
        detect: str | bool = False,
        thresholds: dict[str, float] | None = None,
        hop_samples: int | None = None,
        stacking: Literal["mean", "max"] | None = None,
        resampling: Phase = "zero",
        return_waveforms: bool = False,
        on_error: OnError = "raise",
    ) -> Processed:
        """Recover what was clipped, take out the noise, then pick and detect: each stage if its model is named.

        recover, denoise, pick, detect: a model, or True for the usual one. The waveforms that one stage makes are the
        traces of the next. return_waveforms: have them in the result; those of the last stage are there anyway if
        nothing is read from them. thresholds, hop_samples and stacking are for picking and detection; on_error as for
        `pick`: an instrument that cannot be used is left out of every stage.
        """
        asked: dict[Stage, str | bool] = {"recover": recover, "denoise": denoise, "pick": pick, "detect": detect}
        models = {
            stage: self.model(DEFAULT_MODELS[STAGES[stage]] if name is True else name, STAGES[stage])
            for stage, name in asked.items()
            if name is not False
        }
        options = Options(thresholds, hop_samples, stacking)
        manifests = chain.with_options({stage: model.manifest for stage, model in models.items()}, options)
        keep = chain.returned(models, return_waveforms)
        digests = chain.provenances(manifests, resampling)
        transports = {stage: (manifest, models[stage].transport) for stage, manifest in manifests.items()}
        origin = {stage: Origin(manifests[stage].name, models[stage].version, digests[stage]) for stage in models}
        result = Processed(
            Picks([], *origin["pick"]) if "pick" in models else None,
            Detections([], *origin["detect"]) if "detect" in models else None,
            Waveforms([], *origin["recover"]) if "recover" in keep else None,
            Waveforms([], *origin["denoise"]) if "denoise" in keep else None,
        )

        def work(traces: Iterable[Trace]) -> None:
            given, made = list(traces), None
            if self._remote is not None:
                made = self._remote.process(given, manifests, origin, options, resampling, keep)
            result.add(made or chain.process(handed_over(given), transports, phase=resampling, keep=keep))

        for left_out in _each_instrument(waveforms, work, on_error):
            result.leave_out(left_out)
        return result

    def annotate(
        self,
        waveforms: Stream | Iterable[Trace],
        *,
        model: str = DEFAULT_MODELS["picking"],
        hop_samples: int | None = None,
        stacking: Literal["mean", "max"] | None = None,
        resampling: Phase = "zero",
    ) -> list[Annotation]:
        """The model's probability curves over the waveforms, one for each gapless segment. Raises WaveformError."""
        chosen = self.model(model)
        manifest = chosen.manifest.with_options(None, hop_samples, stacking)
        found: list[Annotation] = []

        def work(traces: Iterable[Trace]) -> None:
            curve, _ = pipeline.annotate(traces, manifest, chosen.transport, phase=resampling)
            found.extend(from_curve(curve))

        _each_instrument(waveforms, work, "raise")
        return found

    def session(
        self,
        *,
        model: str = DEFAULT_MODELS["picking"],
        on_pick: Callable[[Pick], None] | None = None,
        thresholds: dict[str, float] | None = None,
        hop_samples: int | None = None,
        stacking: Literal["mean", "max"] | None = None,
        resampling: Phase = "zero",
        wait_s: float = 10.0,
        idle_s: float = 300.0,
        conflicts: Literal["first", "drop"] = "first",
        retry_s: float = 300.0,
    ) -> Session:
        """Picks in real time: packets of any number of stations go in as they come, each pick comes once.

        Only with a server (`seisserve.realtime` is the same in this process). on_pick: called with each pick. wait_s: a
        packet may begin that much earlier than the latest of its station; idle_s: a station that is silent for so long
        has ended; conflicts: of packets that contradict one another the `first` counts, or both are dropped (`drop`),
        for which every sample waits for `wait_s`; retry_s: how long a connection that broke is tried again. The rest as
        for `pick`. docs/realtime.md has the rules. Raises UsageError, ModelNotFound, ServerError.
        """
        from seisserve.session import Session, SessionOptions

        if self._remote is None:
            raise UsageError('a session needs a server: Client("HOST:PORT"); in this process use seisserve.realtime')
        options = SessionOptions(model, thresholds, hop_samples, stacking, resampling, wait_s, idle_s, conflicts)
        return Session(self._remote, options, on_pick, retry_s)

    def _manifests(self) -> list[Manifest]:
        """Of all models that can be had here, the latest version of each."""
        if self._remote is not None:
            return [self._remote.model(name).manifest for name in self._remote.models()]
        found = []
        for name in bundle.models(self._repository or bundle.shipped()):
            with suppress(BundleError):  # a broken one is no model that could be named instead
                found.append(bundle.find(name, self._repository).manifest)
        return found

    def _load(self, model: str) -> Model:
        if self._remote is not None:
            from seisserve.remote import GrpcTransport

            remote = self._remote.model(model)
            return Model(remote.version, remote.manifest, GrpcTransport(self._remote, remote.version))
        found = bundle.find(model, self._repository)
        setup = tuning.setup_for(found, *self._options, use_tuned=self._tuned)
        return Model(found.version, *runtime.prepare(found, setup))


def _each_instrument(
    waveforms: Stream | Iterable[Trace], work: Callable[[Iterable[Trace]], None], on_error: OnError
) -> list[WaveformError]:
    """Do the work for the traces of each instrument; the errors of those that were skipped."""
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
    errors: list[WaveformError] = []
    instruments = by_instrument(to_traces(waveforms))
    for name in list(instruments):
        try:
            work(handed_over(instruments.pop(name)))
        except WaveformError as error:
            if on_error == "raise":
                raise
            errors.append(error)
    return errors
