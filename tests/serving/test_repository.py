"""The repository: what the configuration asks for is served, the old until the new is proven, and nothing is kept."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving.small_models import HOW, add_bundle, end, eventually, served, window

from seisserve import FakeTransport
from seisserve.errors import BundleError, ModelNotFound, UsageError
from seisserve_serving import repository as repository_module
from seisserve_serving.calls import Call
from seisserve_serving.configs import All, Latest, ModelConfig, Specific, versions, wanted
from seisserve_serving.errors import NotReady, Unavailable
from seisserve_serving.lanes import Lanes
from seisserve_serving.models import Models, State
from seisserve_serving.predict import predict
from seisserve_serving.repository import Repository, Source

Started = dict[str, Models]


@pytest.fixture
def started() -> Iterator[list[Models]]:
    """Tables that end with the test."""
    models: list[Models] = []
    yield models
    for one in models:
        end(one)


def config(base: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(base.name, base)._replace(**changes)


def states(models: Models, name: str = "picker") -> dict[int, State]:
    return {version: state.state for version, state in models.all_states().get(name, {}).items()}


def probability(models: Models, version: int = 0) -> float:
    """What a window of ones gives: 1 / (1 + scale)."""
    outputs = predict(models.get("picker", version), {"waveform": window()}, "", [], Call()).result()
    return float(outputs["probability"][0, 0, 0])


def damage(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


@pytest.mark.parametrize(
    ("policy", "there", "chosen"),
    [
        (Latest(), [1, 2, 10], {10}), (Latest(2), [1, 2, 10], {2, 10}), (Latest(9), [1, 2], {1, 2}),
        (All(), [1, 2, 10], {1, 2, 10}), (Specific(frozenset({1, 7})), [1, 2, 10], {1}), (Latest(), [], set()),
    ],
)  # fmt: skip
def test_a_policy_chooses_among_the_versions_that_are_there(policy: Any, there: list[int], chosen: set[int]) -> None:
    assert wanted(policy, there) == chosen


def test_versions_are_folders_named_by_whole_numbers_that_hold_a_model(tmp_path: Path) -> None:
    for name in ("1", "0002", "10", "0", "x", "-3", "1.5", "\u0661", "9" * 30):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").touch()
    (tmp_path / "7").mkdir()
    (tmp_path / "8").touch()
    assert versions(tmp_path) == {1: tmp_path / "1", 2: tmp_path / "0002", 10: tmp_path / "10"}


def test_a_new_version_takes_over_when_it_is_proven_and_the_old_one_goes(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    assert (models.get("picker").version, probability(models)) == (1, 0.5)
    add_bundle(tmp_path / "picker", 2, scale=3)
    eventually(lambda: states(models) == {1: State.END, 2: State.AVAILABLE})
    assert probability(models) == 0.25
    with pytest.raises(ModelNotFound, match=r"no version 1 of 'picker' is served; there is \[2\]"):
        models.get("picker", 1)
    add_bundle(tmp_path / "other", 1)
    eventually(lambda: "other" in models.served)
    shutil.rmtree(tmp_path / "other")
    eventually(lambda: "other" not in models.served)


def test_a_bad_new_version_leaves_the_old_one_serving_and_says_why_until_it_is_mended(
    tmp_path: Path, started: list[Models]
) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    add_bundle(tmp_path / "ready", 2, scale=3, name="picker")
    whole = (tmp_path / "ready" / "2" / "model.onnx").read_bytes()
    damage(tmp_path / "ready" / "2")
    (tmp_path / "ready" / "2").rename(tmp_path / "picker" / "2")
    eventually(lambda: states(models).get(2) is State.END)
    state = models.states("picker")[2]
    assert state.code == 9
    assert "sha256" in state.message
    assert models.failed["picker"] == {2: state.message}
    assert probability(models) == 0.5
    (tmp_path / "picker" / "2" / "model.onnx").write_bytes(whole)
    eventually(lambda: states(models) == {1: State.END, 2: State.AVAILABLE})


def test_a_call_under_way_keeps_its_version_and_then_nothing_does(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    held = models.get("picker")
    gone = weakref.ref(held.transport)
    add_bundle(tmp_path / "picker", 2)
    eventually(lambda: states(models) == {1: State.UNLOADING, 2: State.AVAILABLE})
    outputs = predict(held, {"waveform": window()}, "", [], Call()).result()
    assert outputs["probability"].shape == (1, 600, 2)
    assert gone() is not None
    del held
    assert gone() is None
    assert states(models) == {1: State.END, 2: State.AVAILABLE}


def test_a_batch_that_was_computed_keeps_no_version_in_memory(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path)
    started.append(models)
    gone = weakref.ref(models.get("picker").transport)

    def call() -> None:
        predict(models.get("picker"), {"waveform": window(count=300)}, "", [], Call()).result()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models.repository is not None
    models.repository.unload("picker", Call())
    eventually(lambda: gone() is None)
    assert states(models) == {1: State.END}


def test_the_version_that_serves_is_the_latest_of_all_and_each_can_be_named(
    tmp_path: Path, started: list[Models]
) -> None:
    for version, scale in ((1, 1.0), (2, 3.0), (10, 7.0)):
        add_bundle(tmp_path / "picker", version, scale)
    (tmp_path / "models.config").write_text(
        'model_config_list { config { name: "picker" base_path: "picker" model_platform: "tensorflow" '
        'model_version_policy { all {} } version_labels { key: "stable" value: 2 } } }'
    )
    models = served(tmp_path / "models.config")
    started.append(models)
    assert [probability(models, version) for version in (0, 1, 2, 10)] == [0.125, 0.5, 0.25, 0.125]
    assert models.get("picker", label="stable").version == 2
    with pytest.raises(UsageError, match="no label 'canary' of 'picker'; there is stable"):
        models.get("picker", label="canary")


def test_a_reload_supersedes(tmp_path: Path, started: list[Models]) -> None:
    for name in ("picker", "other", "third"):
        add_bundle(tmp_path / name, 1)
    models = served(tmp_path)
    started.append(models)
    keeper = models.repository
    assert keeper is not None
    keeper.reload([config(tmp_path / "picker"), config(tmp_path / "third", labels={"stable": 1})], Call())
    assert sorted(models.served) == ["picker", "third"]
    assert states(models, "other") == {1: State.END}
    assert models.get("third", label="stable").version == 1
    keeper.reload([], Call())
    assert models.served == {}


@pytest.mark.parametrize("what", ["outside", "dots", "missing", "label of nothing", "label not there"])
def test_a_reload_that_cannot_be_leaves_everything_as_it_was(tmp_path: Path, started: list[Models], what: str) -> None:
    root = tmp_path / "models"
    add_bundle(root / "picker", 1)
    add_bundle(root / "picker", 2)
    add_bundle(tmp_path / "outside", 1)
    models = served(root)
    started.append(models)
    bad = {
        "outside": config(tmp_path / "outside"), "dots": config(root / "picker" / ".." / ".." / "outside"),
        "missing": config(root / "missing"), "label of nothing": config(root / "picker", labels={"stable": 7}),
        "label not there": config(root / "picker", policy=All(), labels={"stable": 1}),
    }[what]  # fmt: skip
    before = models.served
    assert models.repository is not None
    with pytest.raises(NotReady if "label" in what else UsageError, match=r"base_path|label 'stable'"):
        models.repository.reload([bad], Call())
    models.repository.wait()
    assert models.served is before
    assert models.labels == {}


def test_a_reload_with_a_new_model_that_is_bad_says_why_and_the_rest_holds(
    tmp_path: Path, started: list[Models]
) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path)
    started.append(models)
    damage(add_bundle(tmp_path / "other", 1))
    add_bundle(tmp_path / "third", 1)
    assert models.repository is not None
    with pytest.raises(BundleError, match=r"other: .*sha256"):
        models.repository.reload([config(tmp_path / name) for name in ("picker", "other", "third")], Call())
    assert sorted(models.served) == ["picker", "third"]
    assert states(models, "other") == {1: State.END}


def test_the_same_version_number_at_another_place_is_another_version(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    add_bundle(tmp_path / "moved", 1, scale=3, name="picker")
    (tmp_path / "models.config").write_text('model_config_list { config { name: "picker" base_path: "picker" } }')
    models = served(tmp_path / "models.config")
    started.append(models)
    assert models.repository is not None
    models.repository.reload([config(tmp_path / "moved", name="picker")], Call())
    assert probability(models) == 0.25


def test_a_configuration_may_give_a_bundle_another_name(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    (tmp_path / "models.config").write_text('model_config_list { config { name: "canary" base_path: "picker" } }')
    models = served(tmp_path / "models.config")
    started.append(models)
    assert models.get("canary").manifest.name == "canary"


def test_the_configuration_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, started: list[Models], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("picker", "other"):
        add_bundle(tmp_path / name, 1)
    file = tmp_path / "models.config"
    file.write_text('model_config_list { config { name: "picker" base_path: "picker" } }')
    models = Models(Lanes(1))
    started.append(models)
    Repository(models, HOW, Source(file, is_folder=False, poll_s=0.02)).wait()
    assert list(models.served) == ["picker"]
    file.write_text("model_config_list { config { nme: ")
    eventually(lambda: "the models stay as they are" in caplog.text)
    assert list(models.served) == ["picker"]
    file.write_text('model_config_list { config { name: "other" base_path: "other" } }')
    eventually(lambda: list(models.served) == ["other"])


def test_loading_and_unloading_by_name(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    keeper = models.repository
    assert keeper is not None
    keeper.unload("picker", Call())
    assert states(models) == {1: State.END}
    add_bundle(tmp_path / "picker", 2)  # polling does not bring it back
    add_bundle(tmp_path / "other", 1)
    eventually(lambda: "other" in models.served)
    assert "picker" not in models.served
    keeper.load("picker", Call())
    assert models.get("picker").version == 2
    for act in (keeper.load, keeper.unload):
        with pytest.raises(ModelNotFound, match="nope"):
            act("nope", Call())


def test_what_fails_for_a_passing_reason_is_tried_again(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_bundle(tmp_path / "picker", 1)
    real, failures = repository_module.load_version, [MemoryError("no room"), OSError("no file handle")]

    def sometimes(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*given)

    monkeypatch.setattr(repository_module, "load_version", sometimes)
    models = served(tmp_path, retries=2, retry_s=3600)
    started.append(models)
    keeper = models.repository
    assert keeper is not None
    for reason in ("OSError: no file handle", "MemoryError: no room"):
        state = models.states("picker")[1]
        assert (state.state, state.message) == (State.LOADING, reason)
        with pytest.raises(Unavailable, match="version 1 of 'picker' is being loaded"):
            models.get("picker")
        keeper._attempts = {key: attempt._replace(again_at=0.0) for key, attempt in keeper._attempts.items()}
        keeper._ask()
        keeper.wait()
    eventually(lambda: states(models) == {1: State.AVAILABLE})
    assert failures == []


def test_after_the_last_try_it_has_failed(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_bundle(tmp_path / "picker", 1)
    tries: list[int] = []

    def never(*given: Any) -> Any:
        tries.append(1)
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(repository_module, "load_version", never)
    models = served(tmp_path, retries=2, retry_s=0.01)
    started.append(models)
    eventually(lambda: states(models) == {1: State.END})
    assert len(tries) == 3
    assert models.failed == {"picker": {1: "RuntimeError: the driver is gone"}}


def test_a_caller_that_leaves_stops_waiting_but_not_the_load(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    (tmp_path / "models.config").write_text("model_config_list {}")
    models = served(tmp_path / "models.config")
    started.append(models)
    call = Call()
    call.cancel()
    assert models.repository is not None
    with pytest.raises(UsageError, match="not inside"):  # an empty file names no folder, so none may be named
        models.repository.reload([config(tmp_path / "picker")], call)


def test_changes_are_told_by_model(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path)
    started.append(models)
    told: list[tuple[str, bool]] = []
    models.on_change(lambda name, ready: told.append((name, ready)))
    assert told == [("picker", True)]
    assert models.repository is not None
    add_bundle(tmp_path / "picker", 2)
    models.repository.load("picker", Call())  # one version for another: it can be called all the time
    assert told == [("picker", True)]
    models.repository.unload("picker", Call())
    models.repository.load("picker", Call())
    assert told == [("picker", True), ("picker", False), ("picker", True)]


def test_links_that_lead_out_of_the_models_folder_are_refused(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "models" / "picker", 1)
    shutil.move(tmp_path / "models" / "picker" / "1" / "golden.npz", tmp_path / "golden.npz")
    os.symlink(tmp_path / "golden.npz", tmp_path / "models" / "picker" / "1" / "golden.npz")
    os.symlink(add_bundle(tmp_path / "elsewhere", 1), tmp_path / "models" / "picker" / "2")
    (tmp_path / "models.config").write_text(
        'model_config_list { config { name: "picker" base_path: "models/picker" model_version_policy { all {} } } }'
    )
    models = served(tmp_path / "models.config")
    started.append(models)
    assert models.served == {}
    assert [reason.count("is a link that leads out of") for reason in models.failed["picker"].values()] == [1, 1]


def test_a_folder_of_models_holds_no_link_to_a_model_elsewhere(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "elsewhere", 1, name="picker")
    (tmp_path / "models").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "models" / "picker")
    models = served(tmp_path / "models")
    started.append(models)
    assert models.served == {}
    assert "is not inside" in models.failed["picker"][1]


def test_a_golden_file_with_pickles_is_refused(tmp_path: Path, started: list[Models]) -> None:
    folder = add_bundle(tmp_path / "picker", 1)
    np.savez(folder / "golden.npz", input=np.array([{"a": 1}], object), output=np.zeros(1))
    models = served(tmp_path)
    started.append(models)
    assert "golden" in models.failed["picker"][1]


def test_a_manifest_of_another_name_is_a_copying_mistake(tmp_path: Path, started: list[Models]) -> None:
    folder = add_bundle(tmp_path / "picker", 1)
    text = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**text, "name": "other"}))
    models = served(tmp_path)
    started.append(models)
    assert "'other'" in models.failed["picker"][1]


def test_ended_versions_are_told_of_but_not_for_ever() -> None:
    models = Models(Lanes(1))
    for version in range(1, 100):
        models.note("picker", version, State.END, 9, "why")
    models.note("picker", 100, State.LOADING)
    assert len(models.states("picker")) == 17
    end(models)


def test_a_table_made_by_hand_needs_no_repository(tmp_path: Path) -> None:
    models = Models(Lanes(1))
    folder = add_bundle(tmp_path / "picker", 1)
    text = (folder / "manifest.json").read_bytes()
    from seisserve.manifest import decode

    models.add(3, decode(text, "x"), FakeTransport(lambda waveform: waveform))
    assert states(models) == {3: State.AVAILABLE}
    gone = models.withdraw("picker", 3)
    gc.collect()
    assert gone.is_set()
    end(models)


def test_a_list_that_cannot_be_read_is_told_of_once_and_again_when_it_is_another(
    tmp_path: Path, started: list[Models], caplog: pytest.LogCaptureFixture
) -> None:
    add_bundle(tmp_path / "picker", 1)
    file = tmp_path / "models.config"
    good = 'model_config_list { config { name: "picker" base_path: "picker" } }'
    file.write_text(good)
    models = Models(Lanes(1))
    started.append(models)
    keeper = Repository(models, HOW, Source(file, is_folder=False, poll_s=0.01))
    keeper.wait()
    for number, text in enumerate(["nonsense", good, "nonsense", "other nonsense"]):
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").replace(file)  # at once: nobody reads half of it
        read_again(keeper, 6)
        assert caplog.text.count("the models stay as they are") == (1, 1, 2, 3)[number]
    assert list(models.served) == ["picker"]


def read_again(keeper: Repository, times: int = 4) -> None:
    """Wait until the repository has read its list so often from now on."""
    reads: list[int] = []
    inner = keeper._list_again

    def again() -> None:
        inner()
        reads.append(1)

    keeper._list_again = again  # type: ignore[method-assign]
    eventually(lambda: len(reads) >= times)


def test_a_folder_that_cannot_be_read_leaves_its_model_and_the_others_as_they_are(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root may read everything, so the system's refusal is played: `lost+found` of a volume, a share that hangs."""
    add_bundle(tmp_path / "picker", 1)
    (tmp_path / "lost+found").mkdir()
    closed, real = {"lost+found"}, Path.iterdir

    def iterdir(path: Path) -> Any:
        if path.name in closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    assert list(models.served) == ["picker"]
    add_bundle(tmp_path / "other", 1)
    eventually(lambda: "other" in models.served)
    closed.add("picker")
    assert models.repository is not None
    read_again(models.repository)
    assert sorted(models.served) == ["other", "picker"]
    assert caplog.text.count("lost+found: Permission denied") == 1
    assert "model picker: it stays as it is" in caplog.text


def test_a_repository_that_is_empty_all_at_once_is_taken_for_a_volume_that_has_gone(
    tmp_path: Path, started: list[Models], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    for name in ("picker", "other"):
        add_bundle(root / name, 1)
    models = served(root, poll_s=0.02)
    started.append(models)
    assert models.repository is not None
    root.rename(tmp_path / "volume")
    root.mkdir()
    read_again(models.repository)
    assert sorted(models.served) == ["other", "picker"]
    assert caplog.text.count("has no model any more") == 1
    root.rmdir()
    (tmp_path / "volume").rename(root)
    shutil.rmtree(root / "other")
    eventually(lambda: list(models.served) == ["picker"])


@pytest.mark.parametrize(("looks", "at"), [("is_dir", "picker"), ("is_file", "manifest.json")])
@pytest.mark.parametrize("is_back", [False, True])
def test_a_volume_that_goes_while_it_is_read_takes_no_model_with_it(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch, looks: str, at: str, is_back: bool
) -> None:
    """The list is torn between one model and the next, or a model's versions between their names and what they hold."""
    root, real, armed = tmp_path / "models", getattr(Path, looks), threading.Event()
    for name in ("picker", "other"):
        add_bundle(root / name, 1)
    models = served(root, poll_s=0.02)
    started.append(models)
    withdrawn: list[str] = []
    inner = models.withdraw
    monkeypatch.setattr(models, "withdraw", lambda name, version: (withdrawn.append(name), inner(name, version))[1])

    def looked(path: Path) -> bool:
        if path.name == at and armed.is_set():
            armed.clear()
            root.rename(tmp_path / "volume")
            root.mkdir()
            found = bool(real(path))
            if is_back:
                root.rmdir()
                (tmp_path / "volume").rename(root)
            return found
        return bool(real(path))

    monkeypatch.setattr(Path, looks, looked)
    assert models.repository is not None
    armed.set()
    eventually(lambda: not armed.is_set())
    read_again(models.repository)
    assert sorted(models.served) == ["other", "picker"]
    assert not withdrawn


def test_what_is_asked_for_while_the_folder_is_read_holds(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    keeper, armed = models.repository, threading.Event()
    assert keeper is not None
    real, asked = repository_module.scan, [ModelConfig("picker", tmp_path / "picker", policy=Specific(frozenset({1})))]

    def scan(root: Path) -> list[ModelConfig]:
        found = real(root)
        if armed.is_set() and len(found) == 2:
            armed.clear()
            keeper._source = keeper._source and keeper._source._replace(poll_s=0.0)
            keeper._take(asked)  # somebody reloads in this moment
        return found

    monkeypatch.setattr(repository_module, "scan", scan)
    armed.set()
    add_bundle(tmp_path / "other", 1)
    eventually(lambda: not armed.is_set())
    keeper.wait()
    assert list(keeper._configs.values()) == asked
    assert list(models.served) == ["picker"]


def test_a_version_that_goes_before_it_is_loaded_has_not_failed(
    tmp_path: Path, started: list[Models], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_bundle(tmp_path / "models" / "picker", 1)
    add_bundle(tmp_path / "picker", 2)
    models = served(tmp_path / "models", poll_s=0.02)
    started.append(models)
    real, went, place = repository_module.versions, threading.Event(), tmp_path / "models" / "picker" / "2"

    def versions_then_gone(base: Path) -> dict[int, Path]:
        found = real(base)
        if 2 in found:
            place.rename(tmp_path / "picker" / "2")
            went.set()
        return found

    monkeypatch.setattr(repository_module, "versions", versions_then_gone)
    (tmp_path / "picker" / "2").rename(place)
    assert went.wait(30)
    assert models.repository is not None
    read_again(models.repository)
    assert "not loaded" not in caplog.text
    assert states(models) == {1: State.AVAILABLE}


def test_a_version_that_failed_is_no_failure_any_more_once_it_is_not_asked_for(
    tmp_path: Path, started: list[Models]
) -> None:
    add_bundle(tmp_path / "picker", 1)
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    add_bundle(tmp_path / "ready", 2, name="picker")
    damage(tmp_path / "ready" / "2")
    (tmp_path / "ready" / "2").rename(tmp_path / "picker" / "2")
    eventually(lambda: 2 in models.failed.get("picker", {}))
    add_bundle(tmp_path / "picker", 3)
    eventually(lambda: models.get("picker").version == 3)
    eventually(lambda: not models.failed)
    assert states(models)[2] is State.END
    add_bundle(tmp_path / "other", 1)
    eventually(lambda: "other" in models.served)
    add_bundle(tmp_path / "ready", 2, name="other")
    damage(tmp_path / "ready" / "2")
    (tmp_path / "ready" / "2").rename(tmp_path / "other" / "2")
    eventually(lambda: 2 in models.failed.get("other", {}))
    shutil.rmtree(tmp_path / "other")
    eventually(lambda: not models.failed and "other" not in models.served)


def test_names_that_are_no_text_can_be_told_of(tmp_path: Path, started: list[Models]) -> None:
    add_bundle(tmp_path / "picker", 1)
    shutil.copytree(tmp_path / "picker", os.fsdecode(os.fsencode(tmp_path) + b"/nam\xff"))
    add_bundle(tmp_path / "ready", 2, name="picker")
    os.symlink("/etc", os.fsencode(tmp_path / "ready" / "2") + b"/link\xff")
    (tmp_path / "ready" / "2").rename(tmp_path / "picker" / "2")
    models = served(tmp_path, poll_s=0.02)
    started.append(models)
    reason = models.failed["picker"][2]
    assert "link? is a link that leads out" in reason
    assert list(models.all_states()) == ["picker"]
