"""The models that a server holds: loaded from a repository, found by name and version."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from seisserve import bundle, runtime, tuned
from seisserve.client import DEFAULT_MODELS
from seisserve.errors import BundleError, ModelNotFound
from seisserve.manifest import Manifest, Task
from seisserve.runtimes.setup import Setup, processors
from seisserve.transport import Transport

__all__ = ["Models", "Served", "load"]

log = logging.getLogger(__name__)


class Served(NamedTuple):
    """A model version that is loaded and proven."""

    version: int
    manifest: Manifest
    transport: Transport


class Models(NamedTuple):
    """All versions by model name; `failed` has the reason for those that could not be loaded."""

    served: dict[str, dict[int, Served]]
    failed: dict[str, dict[int, str]]

    def get(self, name: str, version: int = 0, task: Task = "picking") -> Served:
        """A version of a model; 0 is the latest, an empty name the default model for the task. Raises ModelNotFound."""
        chosen = name or self.default(task)
        available = self.served.get(chosen, {})
        if not available:
            raise ModelNotFound(f"no model {chosen!r} is served; there is {', '.join(self.served) or 'none'}")
        if version and version not in available:
            raise ModelNotFound(f"no version {version} of {chosen!r} is served; there is {sorted(available)}")
        return available[version or max(available)]

    def default(self, task: Task) -> str:
        """The model that is meant for a task when none is named: the usual one, else the first that can do it."""
        usual = DEFAULT_MODELS[task]
        fitting = [name for name, versions in self.served.items() if task in versions[max(versions)].manifest.tasks]
        return usual if usual in self.served else next(iter(fitting), usual)

    def manifests(self) -> list[Manifest]:
        """Of the latest version of each model."""
        return [versions[max(versions)].manifest for versions in self.served.values()]


def load(
    repository: Path,
    runtime_name: str | None = None,
    lanes: int | None = None,
    precision: str | None = None,
    providers: tuple[str, ...] | None = None,
    *,
    use_tuned: bool = False,
) -> Models:
    """The latest version of each model in the repository. A bundle that fails its checks is left out, with the reason.

    Options as of `Client`; with `use_tuned` and none of them given, each model runs as `seisserve tune` chose for it.
    Raises UsageError if the folder is no repository, BundleError if no model could be loaded.
    """
    models = Models({}, {})
    for name, versions in bundle.models(repository).items():
        version = versions[-1]
        try:
            found = bundle.read(repository / name / str(version))
            if found.name != name:
                raise BundleError(f"{found.folder}: the manifest says {found.name!r}, the folder {name!r}")
            setup = tuned.setup_for(found, runtime_name, lanes, precision, providers, use_tuned=use_tuned)
            manifest, transport = runtime.prepare(found, setup)
        except BundleError as error:
            log.error("model %s version %d not loaded: %s", name, version, error)
            models.failed.setdefault(name, {})[version] = str(error)
            continue
        models.served.setdefault(name, {})[version] = Served(version, manifest, transport)
        log.info("model %s version %d is served from %s on %s", name, version, found.folder, _told(setup))
    if not models.served:
        raise BundleError(f"{repository}: no model could be loaded" + "".join(
            f"; {reason}" for versions in models.failed.values() for reason in versions.values()
        ))  # fmt: skip
    return models


def _told(setup: Setup) -> str:
    lanes = setup.lanes or processors()
    return f"{setup.runtime}, {setup.precision}, {lanes} at once, {setup.batch_samples} samples a call"
