"""The repository: what the configuration asks for is loaded, what it asks for no more is unloaded.

Everything is loaded on threads of its own, never on those that answer calls. A new version is checked, loaded and
warmed up first, then callers get it, and only then the old one goes; if the new one is bad the old one stays.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeGuard

from seisserve import tuned
from seisserve.errors import BundleError, ModelNotFound, SeisserveError, ServerError, UsageError
from seisserve.memory import give_back
from seisserve.runtimes.setup import processors
from seisserve_serving.calls import Call
from seisserve_serving.configs import ModelConfig, confined, scan, versions, wanted
from seisserve_serving.errors import NotReady, Unavailable
from seisserve_serving.lanes import Batching, Lanes
from seisserve_serving.loading import Loading, load_version, step_back
from seisserve_serving.models import Models, Served, State
from seisserve_serving.status import code_of
from seisserve_serving.text_config import read_models
from seisserve_serving.until import Steps

__all__ = ["Repository", "Source", "load"]

log = logging.getLogger(__name__)
CHECK_S = 0.05  # how often whoever waits for a load looks whether it is still wanted
MOST_CHARACTERS = 2000  # of the reason why a version is not served
LAST = 19  # the lowest priority that a thread can have
CLOSE_S = 5.0  # for what is being loaded when the server stops
LET_GO_S = 1.0  # for the last calls of a version to end, before its memory is looked for


class Source(NamedTuple):
    """Where the list of models comes from: a folder of models, a file that names them, or with a `name` the folder of
    one model. The first two may be looked at again every so many seconds, 0 for never."""

    path: Path
    is_folder: bool
    poll_s: float = 0.0
    name: str = ""

    def read(self) -> list[ModelConfig]:
        """The list of models. Raises UsageError."""
        if self.name:
            return [ModelConfig(self.name, self.path)]
        return scan(self.path) if self.is_folder else read_models(self.path)


class _Attempt(NamedTuple):
    """A version that could not be loaded. stamp: what its folder looked like; again_at: when it is tried again, None
    for not before the folder changes."""

    stamp: int | None
    tries: int
    again_at: float | None


class Repository:
    """Loads and unloads the models of a table.

    source: the list of models at the start, None for none. poll_s: how often the folders of the models are looked at
    for new versions, 0 for never. retries, retry_s: how often and how long apart a version is tried again that failed
    for another reason than its content. at_once: models that are loaded side by side. labels_ahead: labels may name
    versions that are not available yet. Folders that clients name must be inside `roots`.
    """

    def __init__(
        self, models: Models, how: Loading, source: Source | None = None, *, poll_s: float = 0.0, retries: int = 5,
        retry_s: float = 60.0, at_once: int = 1, labels_ahead: bool = False,
    ) -> None:  # fmt: skip
        for name, value in (("poll_s", poll_s), ("retries", retries), ("retry_s", retry_s)):
            if value < 0:
                raise UsageError(f"{name} is {value}; it must not be negative")
        self._at_once, self._labels_ahead = at_once, labels_ahead
        self._models, self._how, self._source = models, how, source
        self._poll_s, self._retries, self._retry_s = poll_s, retries, retry_s
        self._changed = threading.Condition()
        self._configs: dict[str, ModelConfig] = {}
        self._listed: list[ModelConfig] | None = None  # as the source had it last
        self._switched_off: set[str] = set()  # unloaded by name: they stay so until somebody loads them
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        self._complaints: dict[str, str] = {}
        self._complaint = ""  # of the source
        self._asked = self._done = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="repository", daemon=True)
        if source is not None:
            self._take(source.read())
            self._listed = list(self._configs.values())
        models.repository = self
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that loads and unloads is there, or was ended by `close`."""
        return self._closed or self._thread.is_alive()

    @property
    def roots(self) -> list[Path]:
        """The folders that models may be in: that of the source, or those around the models that its file names."""
        if self._source is None:
            return [Path("/")]
        if self._source.is_folder:
            return [self._source.path]
        return sorted({config.base_path.parent for config in self._listed or self._configs.values()})

    @property
    def start(self) -> Path:
        """Where a base_path begins that is not absolute."""
        if self._source is None:
            return Path.cwd()
        return self._source.path if self._source.is_folder else self._source.path.parent

    def wait(self, call: Call | None = None) -> None:
        """Wait until everything that has been asked for is loaded, or has failed. Raises as `Call.check`, and
        Unavailable if nothing loads any more."""
        with self._changed:
            asked = self._asked
            while self._done < asked:
                if self._closed or not self.alive:
                    raise Unavailable("nothing is loaded any more: the server stops, or must be started anew")
                self._changed.wait(CHECK_S)
                if call is not None:
                    call.check()

    def reload(self, configs: list[ModelConfig], call: Call) -> None:
        """Serve these models and no others. Comes back once each new one is available or has failed.

        Raises UsageError or NotReady for a configuration that cannot be, with everything left as it was; BundleError
        if a new model could not be loaded (the rest of the configuration holds); as `Call.check`.
        """
        with self._changed:
            before = set(self._configs)
            self._check(configs)
            log.info("request %s: the models are now %s", call.request_id, ", ".join(item.name for item in configs))
            self._switched_off.clear()
            self._source = (
                self._source._replace(poll_s=0.0) if self._source and self._source.is_folder else self._source
            )
            self._take(configs)
        self.wait(call)
        self._raise_unless_served({config.name for config in configs} - before)

    def load(self, name: str, call: Call) -> None:
        """Serve a model that was unloaded, failed, or is new in the folder of models; look for new versions of one that
        is served. Raises ModelNotFound, BundleError if no version could be loaded; as `Call.check`."""
        with self._changed:
            if name not in self._configs:
                self._configs = {**self._configs, name: self._find(name)}
            self._switched_off.discard(name)
            self._attempts = {key: attempt for key, attempt in list(self._attempts.items()) if key[0] != name}
            self._ask()
        self.wait(call)
        self._raise_unless_served({name})

    def unload(self, name: str, call: Call) -> None:
        """Serve a model no more until it is loaded again. Raises ModelNotFound; as `Call.check`."""
        with self._changed:
            if name not in self._configs:
                raise ModelNotFound(f"no model {name!r}; there is {', '.join(self._configs) or 'none'}")
            self._switched_off.add(name)
            self._ask()
        self.wait(call)

    def close(self) -> None:
        """Load nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _find(self, name: str) -> ModelConfig:
        if self._source is not None and self._source.is_folder:
            found = {config.name: config for config in scan(self._source.path)}
            if name in found:
                return found[name]
        raise ModelNotFound(f"no model {name!r} in the repository; there is {', '.join(self._configs) or 'none'}")

    def _take(self, configs: Iterable[ModelConfig]) -> None:
        self._configs = {config.name: config for config in configs}
        self._models.labels = {name: config.labels for name, config in self._configs.items() if config.labels}
        self._ask()

    def _ask(self) -> None:
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def _check(self, configs: list[ModelConfig]) -> None:
        """Raises unless all of a configuration can be, as far as that can be told without loading anything."""
        for config in configs:
            confined(config.base_path, self.roots)
            try:
                there = versions(config.base_path)
            except OSError as error:
                raise UsageError(f"base_path {str(config.base_path)!r} of {config.name!r}: {error.strerror}") from error
            is_new = config.name not in self._configs
            served = self._models.served.get(config.name, {})
            for label, version in config.labels.items():
                if not self._labels_ahead and version not in (wanted(config.policy, there) if is_new else served):
                    raise NotReady(
                        f"label {label!r} of {config.name!r}: version {version} is not available, so no label can be "
                        "given to it; load it first"
                    )

    def _raise_unless_served(self, names: set[str]) -> None:
        missing = sorted(name for name in names if name not in self._models.served)
        if missing:
            failed = self._models.failed
            told = [f"{name}: {'; '.join(failed.get(name, {0: 'no version is there'}).values())}" for name in missing]
            raise BundleError(f"could not be loaded: {', '.join(told)}")

    def _work(self) -> None:
        """The thread of the repository: one pass after another, as often as it is asked for, or due."""
        looked_at = listed_at = time.monotonic()
        while True:
            with self._changed:
                times = [attempt.again_at for attempt in self._attempts.values() if attempt.again_at is not None]
                times += [looked_at + self._poll_s] if self._poll_s else []
                source_s = self._source.poll_s if self._source else 0.0
                times += [listed_at + source_s] if source_s else []
                due = min(times, default=None)
                left = None if due is None else max(due - time.monotonic(), 0.0)
                if self._asked == self._done and not self._closed and left != 0.0:
                    self._changed.wait(left)
                if self._closed:
                    return
                now = time.monotonic()
                asked = self._asked
                if asked == self._done and (due is None or now < due):
                    continue
            if source_s and now >= listed_at + source_s:
                self._list_again()
                listed_at = now
            looked_at = now
            self._pass()
            with self._changed:
                self._done = max(self._done, asked)
                self._changed.notify_all()

    def _list_again(self) -> None:
        """Read the source again and take what it says if that has changed."""
        with self._changed:
            source, before = self._source, self._configs
        if source is None:
            return
        try:
            found = source.read()
            if {config.name for config in self._listed or []} - {config.name for config in found}:
                found = source.read()  # the volume may have gone between one model and the next
            if source.is_folder and self._listed and not found:
                raise UsageError(f"{source.path} has no model any more; is its volume there?")
        except UsageError as error:
            if str(error) != self._complaint:
                log.error("the models stay as they are: %s", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        with self._changed:
            # What somebody has asked for meanwhile holds until the source is read the next time.
            if found != self._listed and self._source is source and self._configs is before:
                self._listed = found
                self._take(found)

    def _pass(self) -> None:
        """Make what is served what is asked for."""
        with self._changed:
            configs = {name: item for name, item in self._configs.items() if name not in self._switched_off}
        for name in [name for name in self._models.served if name not in configs]:
            self._unload(name, list(self._models.served[name]), "it is asked for no more")
        for name in {name for name, _ in self._attempts} - set(configs):
            self._give_up(name, set())
        plans = [(config, *self._plan(config)) for config in configs.values()]
        with ThreadPoolExecutor(self._at_once, thread_name_prefix="plan") as pool:
            list(pool.map(self._carry_out, plans))

    def _carry_out(self, plan: tuple[ModelConfig, dict[int, Path], set[int] | None]) -> None:
        config, folders, keep = plan
        for version, folder in folders.items():
            if self._closed:
                return
            self._load(config, version, folder)
        if keep is not None:
            self._leave_only(config.name, keep)

    def _plan(self, config: ModelConfig) -> tuple[dict[int, Path], set[int] | None]:
        """The versions to load, the latest first, and those to keep (None: all, nothing is known)."""
        try:
            there = versions(config.base_path)
            if self._models.served.get(config.name, {}).keys() - there.keys():
                there = versions(config.base_path)  # it may have gone between their names and their files
        except OSError as error:
            self._complain(config.name, f"it stays as it is: {config.base_path}: {error.strerror}")
            self._give_up(config.name, set())
            return {}, None
        chosen = wanted(config.policy, there)
        self._complain(config.name, "" if chosen else f"no version that is asked for is in {config.base_path}")
        self._give_up(config.name, chosen)
        served = self._models.served.get(config.name, {})
        new = {}
        for version in sorted(chosen, reverse=True):
            if version in served and served[version].folder == there[version]:
                continue
            attempt, stamp = self._attempts.get((config.name, version)), _stamp(there[version])
            if stamp is not None and (attempt is None or attempt.stamp != stamp or _due(attempt)):
                new[version] = there[version]
                if version not in served and not _goes_on(attempt):
                    self._models.note(config.name, version, State.START)
        return new, chosen

    def _load(self, config: ModelConfig, version: int, folder: Path) -> None:
        name = config.name
        is_new = version not in self._models.served.get(name, {})
        if is_new and not _goes_on(self._attempts.get((name, version))):  # else its state says why it failed
            self._models.note(name, version, State.LOADING)
        stamp, begin = _stamp(folder), time.monotonic()
        try:
            served, told = self._loaded(config, version, folder)
        except Exception as error:  # whatever a runtime raises about a file that somebody else wrote
            if self._closed:
                return
            self._failed(name, version, stamp, error, is_new)
            return
        self._attempts.pop((name, version), None)
        self._models.publish(served)
        if self._how.told is not None:
            self._how.told(name, version, time.monotonic() - begin)
        log.info("model %s version %d is served from %s on %s", name, version, folder, told)

    def _loaded(self, config: ModelConfig, version: int, folder: Path) -> tuple[Served, str]:
        """The version, loaded on a thread that leaves the processors to those that answer calls, and is left alone if
        its runtime does not come to an end, or the server stops."""
        result: list[tuple[Served, str]] = []
        errors: list[Exception] = []
        steps = Steps(self._how.run_timeout_s)

        def work() -> None:
            try:
                if self._source is not None and self._source.is_folder:
                    confined(config.base_path, self.roots)  # a link may have been put there
                result.append(load_version(self._models, config, version, folder, self._how, steps))
            except Exception as error:  # raised again by the thread of the repository
                errors.append(error)

        thread = threading.Thread(target=work, name=f"load {config.name} {version}", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(CHECK_S)
            if self._closed:
                steps.give_up()
                raise Unavailable("nothing is loaded any more: the server stops")
            if thread.is_alive() and (stuck := steps.stuck()) is not None:
                if thread.native_id is not None:
                    with suppress(ProcessLookupError):  # it has ended in this moment
                        step_back(thread.native_id, LAST)
                raise stuck
        if errors:
            raise errors.pop()
        return result.pop()

    def _failed(self, name: str, version: int, stamp: int | None, error: Exception, is_new: bool) -> None:
        """Remember why, and whether to try again: content that is wrong stays wrong until it changes."""
        before = self._attempts.get((name, version))
        count = before.tries + 1 if _goes_on(before) else 1
        lasts = isinstance(error, SeisserveError) and not isinstance(error, ServerError)  # that is a backend's
        again = not lasts and count <= self._retries
        self._attempts[name, version] = _Attempt(stamp, count, time.monotonic() + self._retry_s if again else None)
        reason = _told(str(error) if isinstance(error, SeisserveError) else f"{type(error).__name__}: {error}")
        log.error("model %s version %d not loaded%s: %s", name, version, ", to be tried again" if again else "", reason)
        if is_new:
            self._models.note(
                name, version, State.LOADING if again else State.END, code_of(error).value[0], reason
            )  # fmt: skip

    def _give_up(self, name: str, keep: set[int]) -> None:
        """Try no more to load versions that are not asked for any more."""
        for key in [key for key in list(self._attempts) if key[0] == name and key[1] not in keep]:
            del self._attempts[key]
            if key[1] not in self._models.served.get(name, {}):
                self._models.note(name, key[1], State.END)  # without the reason: nobody has to do anything about it

    def _complain(self, name: str, what: str) -> None:
        """Log what is wrong with a model's folder, once."""
        if what and self._complaints.get(name) != what:
            log.warning("model %s: %s", name, what)
        self._complaints[name] = what

    def _leave_only(self, name: str, keep: set[int]) -> None:
        """Unload what is not to be kept, once something that is to be kept can be called, or there is nothing such."""
        numbers = set(self._models.served.get(name, {}))
        others = sorted(numbers - keep)
        if others and (not keep or keep & numbers):
            self._unload(name, others, "others take its place" if keep else "its folder has gone")

    def _unload(self, name: str, numbers: list[int], why: str) -> None:
        gone = []
        for version in numbers:
            log.info("model %s version %d is unloaded: %s", name, version, why)
            gone.append(self._models.withdraw(name, version))
        until = time.monotonic() + LET_GO_S
        if not all(event.wait(max(until - time.monotonic(), 0.0)) for event in gone):
            gc.collect()  # a call under way keeps it, or a cycle in somebody's error
        give_back()


def load(
    repository: Path,
    runtime_name: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    providers: tuple[str, ...] | None = None,
    *,
    use_tuned: bool = False,
    lanes: Lanes | None = None,
    batching: Batching | None = None,
    warm_up: bool = True,
) -> Models:
    """The latest version of each model in a folder. A bundle that fails its checks is left out, with the reason.

    Options as of `Client`; with `use_tuned` and none of them given, each model runs as `seisserve tune` chose for it.
    lanes: where they compute, by default as many as `threads`, or as there are processors.
    Raises UsageError if the folder is no repository, BundleError if no model could be loaded.
    """
    models = Models(lanes or Lanes(threads or processors()))
    how = Loading(
        lambda found: tuned.setup_for(found, runtime_name, threads, precision, providers, use_tuned=use_tuned),
        batching, warm_up=warm_up,
    )  # fmt: skip
    keeper = Repository(models, how, Source(repository, is_folder=True))
    keeper.wait()
    if not models.served:
        models.close()
        models.lanes.close()
        reasons = [reason for found in models.failed.values() for reason in found.values()]
        raise BundleError("; ".join([f"{repository}: no model could be loaded", *reasons]))
    return models


def _stamp(folder: Path) -> int | None:
    """A number that changes when a file in the folder does; None if there is no such folder (any more)."""
    try:
        statuses = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    except OSError:  # on its way in or out
        statuses = []
    marks = tuple((path, status.st_size, status.st_mtime_ns) for path, status in statuses)
    return hash(marks) if folder.is_dir() else None


def _told(reason: str) -> str:
    """A reason as messages can hold it: names of files need not be UTF-8, and a runtime may say very much."""
    return reason.encode(errors="replace").decode()[:MOST_CHARACTERS]


def _goes_on(attempt: _Attempt | None) -> TypeGuard[_Attempt]:
    """Whether a version has failed and is to be tried again."""
    return attempt is not None and attempt.again_at is not None


def _due(attempt: _Attempt) -> bool:
    return attempt.again_at is not None and time.monotonic() >= attempt.again_at
