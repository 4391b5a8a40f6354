"""Fine-tuning: weights are copied by name, frozen layers stay as they are to the last bit, stopped or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from seisserve.errors import UsageError  # noqa: E402
from seisserve_training import bundles, fine_tuning, training  # noqa: E402
from seisserve_training.config import Config, Data, FineTune, Network, Schedule  # noqa: E402
from seisserve_training.models import ARCHITECTURES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own

FROZEN = ("in", "down", "stride")


def tiny(fine_tune: FineTune | None = None, **network: object) -> Config:
    """A configuration that takes seconds."""
    return Config(
        name="tiny",
        data=Data(synthetic_share=1.0, synthetic_events=8),
        network=Network(**{"window_samples": 1024, "filters": 2, **network}),
        schedule=Schedule(epochs=2, steps_per_epoch=3, batch_size=2, seed=3),
        fine_tune=fine_tune,
    )


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: np.array(variable) for variable in model.weights}


def spoilt() -> keras.Model:
    """A network whose weights are all unlike fresh ones, statistics too."""
    keras.utils.set_random_seed(9)
    model = training.network(tiny())
    rng = np.random.default_rng(0)
    model.set_weights([value + 0.01 * np.abs(rng.normal(size=value.shape)) for value in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: only its bundle matters here."""
    folder = tmp_path_factory.mktemp("run")
    bundles.save(spoilt(), training.contract(tiny()), folder / "bundle")
    return folder


def test_a_bundle_gives_its_weights_by_name(source: Path) -> None:
    found, wanted = fine_tuning.saved_weights(source / "bundle"), weights(spoilt())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("where", ["", "bundle"])
def test_everything_is_copied_from_a_run_or_a_bundle(source: Path, where: str) -> None:
    model = training.network(tiny())
    done = fine_tuning.transfer(model, tiny(FineTune(init_from=where)), source)
    assert not done.fresh
    assert len(done.copied) == len(model.weights)
    for name, value in weights(spoilt()).items():
        np.testing.assert_array_equal(weights(model)[name], value)


def test_another_architecture_takes_what_it_shares(source: Path) -> None:
    config = tiny(FineTune(init_from="bundle"), kind="onset")
    model = training.network(config)
    done = fine_tuning.transfer(model, config, source)
    assert len(done.copied) == len(model.weights)
    np.testing.assert_array_equal(weights(model)["logits/kernel"], weights(spoilt())["logits/kernel"])


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(1, {"in"}), (3, {"in", "in_norm", "down0"}), (("down0", "log"), {"down0", "down0_norm", "logits"})],
)
def test_only_the_named_layers_are_copied(source: Path, layers: int | tuple[str, ...], wanted: set[str]) -> None:
    config = tiny(FineTune(init_from="bundle", layers=layers))
    model = training.network(config)
    before = weights(model)
    done = fine_tuning.transfer(model, config, source)
    assert {name.split("/")[0] for name in done.copied} == wanted
    assert str(len(done.copied)) in str(done)
    for name in done.fresh:
        np.testing.assert_array_equal(weights(model)[name], before[name])


def test_frozen_layers_stay_and_the_others_learn(source: Path, tmp_path: Path) -> None:
    config = tiny(FineTune(init_from="bundle", freeze=FROZEN))
    after, before = weights(training.train(config, tmp_path, [], source)), weights(spoilt())
    for name, value in before.items():
        assert np.array_equal(after[name], value) == name.startswith(FROZEN), name


def test_fine_tuning_goes_on_where_it_was_stopped(source: Path, tmp_path: Path, stopped: Callable[..., None]) -> None:
    config = tiny(FineTune(init_from="bundle", freeze=FROZEN))
    straight = training.train(config, tmp_path / "straight", [], source).get_weights()
    stopped(config, tmp_path / "stopped", [], source)
    resumed = training.train(config, tmp_path / "stopped", [], tmp_path).get_weights()  # the source is not needed again
    for one, two in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_was_learnt_is_mixed_with_what_it_began_from(source: Path, tmp_path: Path, share: float) -> None:
    """Of the layers that were copied; the others had nothing worth keeping."""
    layers = ("in", "down", "logits")
    learnt = weights(training.train(tiny(FineTune(init_from="bundle", layers=layers)), tmp_path / "0", [], source))
    config = tiny(FineTune(init_from="bundle", layers=layers, keep=share))
    mixed = weights(training.train(config, tmp_path / "1", [], source))
    for name, begun in weights(spoilt()).items():
        wanted = share * begun + (1 - share) * learnt[name] if name.startswith(layers) else learnt[name]
        np.testing.assert_allclose(mixed[name], wanted, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("fine_tune", "network", "said"),
    [
        (FineTune(init_from="nowhere"), {}, "no such file"),
        (FineTune(init_from="empty"), {}, "holds no bundle"),
        (FineTune(init_from="bundle/saved_model.pb"), {}, "cannot be read as a Keras HDF5 file"),
        (FineTune(init_from="bundle/saved_model.pb"), {"kind": "recovery"}, "no published weights of 'recovery'"),
        (FineTune(init_from="bundle", layers=("down0",)), {"filters": 3}, "name and shape"),
        (FineTune(init_from="bundle", layers=("encoder",)), {}, "encoder"),
        (FineTune(init_from="bundle", freeze=("encoder",)), {}, "encoder"),
        (FineTune(init_from="bundle", freeze=("",)), {}, "no layer to train"),
    ],
)
def test_mistakes_are_named(
    source: Path, tmp_path: Path, fine_tune: FineTune, network: dict[str, object], said: str
) -> None:
    (source / "empty").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=said):
        training.train(tiny(fine_tune, **network), tmp_path, [], source)


def test_the_configuration_takes_a_number_or_names() -> None:
    def read(layers: str) -> Config:
        text = f'name = "x"\n[data]\npaths = ["a"]\n[fine_tune]\ninit_from = "b"\nlayers = {layers}\n'
        return msgspec.toml.decode(text, type=Config)

    for layers, wanted in (("4", 4), ('["down"]', ("down",)), ("[]", ())):
        config = read(layers)
        assert config.fine_tune is not None
        assert config.fine_tune.layers == wanted
    with pytest.raises(msgspec.ValidationError, match="layers"):
        read("0")


def test_published_files_are_read_by_the_networks_own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "published.npz", *spoilt().get_weights())

    def load(model: keras.Model, path: Path) -> None:
        with np.load(path) as file:
            model.set_weights([file[name] for name in file])

    phasenet = ARCHITECTURES["phasenet"]._replace(published=load)
    monkeypatch.setitem(ARCHITECTURES, "phasenet", phasenet)
    config = tiny(FineTune(init_from="published.npz", layers=("down",)))
    model = training.network(config)
    before = weights(model)
    done = fine_tuning.transfer(model, config, tmp_path)
    for name, value in weights(spoilt()).items():
        wanted = value if name.startswith("down") else before[name]
        np.testing.assert_array_equal(weights(model)[name], wanted)
        assert (name in done.copied) == name.startswith("down")
