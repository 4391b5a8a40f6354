"""The imported GPD against what the authors' own files and preprocessing gave, and what holds for any weights."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from click.testing import CliRunner
from scipy.signal import butter, sosfilt

from seisserve.bundle import read
from seisserve.errors import UsageError
from seisserve.runtime import load
from seisserve_export.commands import import_weights
from seisserve_export.importers.gpd import GPD_ORIGINAL, _gpd, load_gpd_keras_h5

WEIGHTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "weights" / "gpd" / "model_pol_best.hdf5"
needs_data = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"published weights: {WEIGHTS} is absent")
TOLERANCE = 1e-5

Array = npt.NDArray[Any]


def recorded() -> dict[str, Array]:
    """What a Keras 2 made from the published JSON and HDF5 files said, and when.

    windows [4, 400, 3] (N, E, Z, normalised) to window_probability [4, 3] (P, S, N). record [1400, 3] (Z, N, E, raw,
    with a trend and a slow wave), which was detrended and filtered as a whole with ObsPy's band-pass of 3 to 20 Hz,
    cut into windows of 400 samples from `starts` on and divided by the largest amplitude: probability [n, 3].
    """
    with np.load(Path(__file__).parent / "gpd_published.npz") as arrays:
        return dict(arrays)


def made_up_variables() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = [(21, 3, 32), (15, 32, 64), (11, 64, 128), (9, 128, 256), (6400, 200), (200, 200)]
    variables: dict[str, Array] = {}
    for number, shape in enumerate(shapes, start=1):
        layer = f"conv1d_{number}_1" if number < 5 else f"dense_{number - 4}_1"
        norm, channels = f"batch_normalization_{number}_1", shape[-1]
        variables[f"{layer}/kernel"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        variables[f"{layer}/bias"] = rng.normal(size=channels) / 5
        variables[f"{norm}/gamma"] = rng.uniform(0.5, 1.5, channels)
        variables[f"{norm}/beta"] = rng.normal(size=channels) / 5
        variables[f"{norm}/moving_mean"] = rng.normal(size=channels) / 5
        variables[f"{norm}/moving_variance"] = rng.uniform(0.5, 2, channels)
    variables["dense_3_1/kernel"] = rng.normal(size=(200, 3)) / 3
    variables["dense_3_1/bias"] = rng.normal(size=3)
    return {name: value.astype(np.float32) for name, value in variables.items()}


def write(path: Path, variables: dict[str, Array]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in variables.items():
            file[f"model_weights/sequential_1/{name}:0"] = value
    return path


def as_published(variables: dict[str, Array], windows: Array) -> Array:
    """Batch norms unfolded: [n, 400, 3] (N, E, Z, filtered and normalised) -> [n, 3] (P, S, N)."""

    def normalised(y: tf.Tensor, number: int) -> tf.Tensor:
        names = ("moving_mean", "moving_variance", "beta", "gamma")
        parts = [variables[f"batch_normalization_{number}_1/{name}"] for name in names]
        return tf.nn.relu(tf.nn.batch_normalization(y, *parts, 0.001))

    y = tf.constant(windows, tf.float32)
    for number in range(1, 5):
        y = tf.nn.conv1d(y, variables[f"conv1d_{number}_1/kernel"], 1, "SAME") + variables[f"conv1d_{number}_1/bias"]
        y = tf.nn.max_pool1d(normalised(y, number), 2, 2, "VALID")
    y = tf.reshape(y, [len(windows), -1])
    for number in (1, 2):
        y = normalised(y @ variables[f"dense_{number}_1/kernel"] + variables[f"dense_{number}_1/bias"], number + 4)
    probability: Array = tf.nn.softmax(y @ variables["dense_3_1/kernel"] + variables["dense_3_1/bias"]).numpy()
    return probability


def windows_of(record: Array, starts: Array) -> Array:
    """Those of the bundle, 200 samples longer on either side than the published ones: [n, 800, 3]."""
    return np.stack([record[start - 200 : start + 600] for start in starts.tolist()]).astype(np.float32)


def serve(model: tf.Module, windows: Array) -> Array:
    probability: Array = model.serve(tf.constant(windows, tf.float32))["probability"].numpy()
    return probability


@pytest.fixture(scope="module")
def variables() -> dict[str, Array]:
    return made_up_variables()


@pytest.fixture(scope="module")
def made_up(variables: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gpd") / "gpd.hdf5", variables)


@pytest.fixture(scope="module")
def model(made_up: Path) -> tf.Module:
    return load_gpd_keras_h5(made_up)


@pytest.fixture(scope="module")
def windows() -> Array:
    found = recorded()
    return windows_of(found["record"].astype(float), found["starts"][::6])


@needs_data
def test_the_network_is_the_published_one() -> None:
    found, model = recorded(), load_gpd_keras_h5(WEIGHTS)
    probability = _gpd(tf.constant(found["windows"][:, None][..., [2, 0, 1]]), model.weights).numpy()
    np.testing.assert_allclose(probability, found["window_probability"][:, [2, 0, 1]], rtol=0, atol=TOLERANCE)


@needs_data
def test_a_record_gets_the_published_answers() -> None:
    found = recorded()
    expected = found["probability"][:, [2, 0, 1]]
    assert expected[:, 1:].max(axis=0).min() > 0.9  # P and S are both there
    probability = serve(load_gpd_keras_h5(WEIGHTS), windows_of(found["record"], found["starts"]))
    np.testing.assert_allclose(probability, expected, rtol=0, atol=3e-4)
    assert found["starts"][probability[:, 1].argmax()] + 200 == 500  # where P begins in the made-up record


def test_made_up_weights_give_what_filtering_the_record_and_the_unfolded_network_give(
    model: tf.Module, variables: dict[str, Array]
) -> None:
    found = recorded()
    starts = found["starts"][5:]
    record = found["record"].astype(float)
    filtered = sosfilt(butter(4, [3, 20], "bandpass", fs=100, output="sos"), record - record[0], axis=0)
    cut = np.stack([filtered[start : start + 400] for start in starts.tolist()])[..., [1, 2, 0]]
    expected = as_published(variables, cut / np.abs(cut).max(axis=(1, 2), keepdims=True))[:, [2, 0, 1]]
    assert expected.std(axis=0).min() > 0.005  # else anything would agree
    np.testing.assert_allclose(serve(model, windows_of(record, starts)), expected, rtol=0, atol=3e-4)


def test_nothing_behind_the_network_counts(model: tf.Module, windows: Array) -> None:
    changed = windows.copy()
    changed[:, 600:] *= -5
    np.testing.assert_array_equal(serve(model, changed), serve(model, windows))


@pytest.mark.parametrize("scale", [1e-14, 1e-7, 0.3, 1e9])
def test_amplitude_does_not_matter(model: tf.Module, windows: Array, scale: float) -> None:
    scaled = (windows.astype(np.float64) * scale).astype(np.float32)
    np.testing.assert_allclose(serve(model, scaled), serve(model, windows), rtol=0, atol=2e-4)


@pytest.mark.parametrize("components", [[0], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("value", [1e-14, 1 / 3, -16777215.0, 1e9])
def test_constant_components_count_as_zeros(
    model: tf.Module, windows: Array, components: list[int], value: float
) -> None:
    constant, zero = windows.copy(), windows.copy()
    constant[:, :, components], zero[:, :, components] = value, 0
    assert np.isfinite(serve(model, constant)).all()
    np.testing.assert_array_equal(serve(model, constant), serve(model, zero))


def test_the_import_command(made_up: Path, windows: Array, tmp_path: Path) -> None:
    folder = tmp_path / "gpd_original" / "1"
    np.savez(tmp_path / "windows.npz", input=windows)
    arguments = ["gpd-hdf5", str(made_up), "-o", str(folder), "--windows", str(tmp_path / "windows.npz")]
    result = CliRunner().invoke(import_weights, arguments)
    assert result.exit_code == 0, result.exception
    bundle = read(folder)
    assert bundle.manifest.output == GPD_ORIGINAL.output
    served = load(bundle).predict(bundle.manifest, {"waveform": windows})["probability"]
    np.testing.assert_allclose(served, serve(load_gpd_keras_h5(made_up), windows), rtol=0, atol=1e-4)


def test_a_file_that_is_not_gpd(variables: dict[str, Array], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_gpd_keras_h5(tmp_path / "nowhere")
    for name in ("conv1d_3_1/bias", "batch_normalization_6_1/gamma", "dense_3_1/kernel"):
        rest = {key: value for key, value in variables.items() if key != name}
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            load_gpd_keras_h5(write(tmp_path / "gpd.hdf5", rest))
    wrong = {**variables, "dense_1_1/kernel": np.zeros((3200, 200), np.float32)}
    with pytest.raises(ValueError, match=r"has shape \(3200, 200\) instead of \(6400, 200\)"):
        load_gpd_keras_h5(write(tmp_path / "gpd.hdf5", wrong))
    (tmp_path / "text").write_text("no HDF5")
    result = CliRunner().invoke(import_weights, ["gpd-hdf5", str(tmp_path / "text"), "-o", str(tmp_path / "1")])
    assert isinstance(result.exception, UsageError)
    assert "cannot be read as HDF5" in str(result.exception)
