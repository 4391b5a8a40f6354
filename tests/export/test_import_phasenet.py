"""The imported PhaseNet against the original graph, and what holds for any weights against a made-up file."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx

from seisserve_export.importers.phasenet import load_phasenet_keras_h5, load_phasenet_tf1

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TF1 = DATA / "weights" / "phasenet_original_tf1"
KERAS = DATA / "weights" / "phasenet_original_keras" / "model_95_converted.h5"
WAVEFORMS = DATA / "waveforms"
TOLERANCE = 1e-5  # of a probability

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"published weights and real waveforms: {DATA} is absent")

Array = npt.NDArray[Any]


class Case(NamedTuple):
    model: tf.Module
    windows: Array  # [n, 3000, 3] raw, Z, N, E


def standardise(raw: Array) -> Array:
    """What users of the published network do before it, in float64; and from Z, N, E to E, N, Z."""
    centred = raw.astype(np.float64) - raw.astype(np.float64).mean(axis=1, keepdims=True)
    std = centred.std(axis=1, keepdims=True)
    standardised: Array = (centred / np.where(std > 0, std, 1))[:, :, ::-1].astype(np.float32)
    return standardised


def random_windows(n: int) -> Array:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(n, 3000, 3)) * [3.0, 200.0, 1e4] + [0.0, 50.0, -3e4]).astype(np.float32)


def real_traces(source: str, n: int) -> list[tuple[dict[str, str], Array]]:
    """The first rows of the table and their traces ``[3, sample]``, Z, N, E."""
    with (WAVEFORMS / "metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source_dataset"] == source][:n]
    with h5py.File(WAVEFORMS / "waveforms.hdf5") as file:
        places = [row["trace_name"].replace("$", ",").split(",") for row in rows]  # bucket0$12,:3,:9001
        return [(row, file["data"][place[0]][int(place[1])]) for row, place in zip(rows, places, strict=True)]


def windows_around_p(n: int) -> tuple[Array, Array]:
    """Windows ``[n, 3000, 3]`` with P at sample 1000, and the sample of S."""
    windows, s_samples = [], []
    for row, trace in real_traces("phasenet_ncedc_sample", n):
        start = round(float(row["trace_p_arrival_sample"])) - 1000
        windows.append(trace[:, start : start + 3000].T)
        s_samples.append(float(row["trace_s_arrival_sample"]) - start)
    return np.array(windows, np.float32), np.array(s_samples)


def made_up_variables() -> dict[str, Array]:
    """A checkpoint's variables, names and shapes as published."""
    rng = np.random.default_rng(0)
    variables: dict[str, Array] = {}

    def add(scope: str, conv: str, shape: tuple[int, ...], channels: int) -> None:
        fan_in = 7 * shape[2] if not conv.startswith("up_conv0") else 2 * shape[3]
        norm = conv.replace("conv", "bn")
        variables[f"{scope}/{conv}/kernel"] = rng.normal(size=shape) * np.sqrt(2 / fan_in)
        variables[f"{scope}/{norm}/gamma"] = rng.uniform(0.5, 1.5, channels)
        variables[f"{scope}/{norm}/beta"] = rng.normal(size=channels) / 5
        variables[f"{scope}/{norm}/moving_mean"] = rng.normal(size=channels) / 5
        variables[f"{scope}/{norm}/moving_variance"] = rng.uniform(1, 4, channels)

    add("Input", "input_conv", (7, 1, 3, 8), 8)
    variables["Input/input_conv/bias"] = rng.normal(size=8) / 5
    for level, (above, n) in enumerate([(8, 8), (8, 16), (16, 32), (32, 64), (64, 128)], start=1):
        down, up = f"DownConv_{level - 1}", f"UpConv_{level - 1}"
        add(down, f"down_conv1_{level}", (7, 1, above, n), n)
        if level < 5:
            add(down, f"down_conv3_{level}", (7, 1, n, n), n)
            add(up, f"up_conv0_{level}", (7, 1, n, 2 * n), n)
            add(up, f"up_conv1_{level}", (7, 1, 2 * n, n), n)
    variables["Output/output_conv/kernel"] = rng.normal(size=(1, 1, 8, 3)) / 3
    variables["Output/output_conv/bias"] = rng.normal(size=3) / 3
    return {name: value.astype(np.float32) for name, value in variables.items()}


def write_checkpoint(folder: Path, variables: dict[str, Array]) -> Path:
    folder.mkdir(exist_ok=True)
    names, values = list(variables), [tf.constant(value) for value in variables.values()]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    return folder


def write_h5(path: Path, variables: dict[str, Array]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in variables.items():
            _, layer, variable = name.split("/")
            file[f"model_weights/{layer}/{layer}/{variable}:0"] = value
    return path


def network_as_published(variables: dict[str, Array], x: Array) -> Array:
    """Batch norms unfolded, images of width 1, every name written as in the checkpoint: the slow twin."""

    def normalised(y: tf.Tensor, name: str) -> tf.Tensor:
        beta, gamma, mean, variance = (
            variables[f"{name}/{part}"] for part in ("beta", "gamma", "moving_mean", "moving_variance")
        )
        return tf.nn.relu(tf.nn.batch_normalization(y, mean, variance, beta, gamma, 0.001))

    def conv(y: tf.Tensor, scope: str, name: str, stride: int = 1) -> tf.Tensor:
        y = tf.nn.conv2d(y, variables[f"{scope}/{name}/kernel"], [stride, 1], "SAME")
        return normalised(y + variables.get(f"{scope}/{name}/bias", 0), f"{scope}/{name.replace('conv', 'bn')}")

    y = conv(x[:, :, None], "Input", "input_conv")
    skips = []
    for i in range(4):
        skips.append(conv(y, f"DownConv_{i}", f"down_conv1_{i + 1}"))
        y = conv(skips[-1], f"DownConv_{i}", f"down_conv3_{i + 1}", stride=4)
    y = conv(y, "DownConv_4", "down_conv1_5")
    for i, start, samples in [(3, 0, 47), (2, 0, 188), (1, 1, 750), (0, 0, 3000)]:
        kernel = variables[f"UpConv_{i}/up_conv0_{i + 1}/kernel"]
        y = tf.nn.conv2d_transpose(y, kernel, [len(x), 4 * y.shape[1], 1, kernel.shape[2]], [4, 1], "SAME")
        y = normalised(y, f"UpConv_{i}/up_bn0_{i + 1}")[:, start : start + samples]
        y = conv(tf.concat([skips[i], y], 3), f"UpConv_{i}", f"up_conv1_{i + 1}")
    y = tf.nn.conv2d(y, variables["Output/output_conv/kernel"], 1, "SAME") + variables["Output/output_conv/bias"]
    probability: Array = tf.nn.softmax(y[:, :, 0]).numpy()
    return probability


def run_original_graph(x: Array) -> Array:
    """The published .meta, restored and run as TensorFlow 1 does; without the gradients, which no longer import."""
    meta = tf.compat.v1.MetaGraphDef.FromString((TF1 / "model_95.ckpt.meta").read_bytes())
    output = next(node.name for node in meta.graph_def.node if node.name.startswith("preds/Reshape_1"))
    wanted = tf.compat.v1.graph_util.extract_sub_graph(meta.graph_def, [output, "save/restore_all"])
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(wanted, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            session.run("save/restore_all", {"save/Const:0": str(TF1 / "model_95.ckpt")})
            feed = {"X:0": x[:, :, None], "is_training:0": False, "drop_rate:0": 0.0}
            probability: Array = session.run(f"{output}:0", feed)[:, :, 0]
    return probability


def serve(model: tf.Module, windows: Array) -> Array:
    probability: Array = model.serve(tf.constant(windows, tf.float32))["probability"].numpy()
    return probability


@pytest.fixture(scope="module")
def variables() -> dict[str, Array]:
    return made_up_variables()


@pytest.fixture(scope="module")
def made_up(variables: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_checkpoint(tmp_path_factory.mktemp("phasenet") / "tf1", variables)
    return Case(load_phasenet_tf1(folder), random_windows(3))


@pytest.fixture(scope="module")
def published() -> Case:
    return Case(load_phasenet_tf1(TF1), np.concatenate([random_windows(3), windows_around_p(5)[0]]))


@pytest.fixture(params=["made_up", pytest.param("published", marks=needs_data)])
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.getfixturevalue(request.param)
    return chosen


def test_made_up_weights_give_what_the_unfolded_network_gives(made_up: Case, variables: dict[str, Array]) -> None:
    expected = network_as_published(variables, standardise(made_up.windows))
    assert expected.std(axis=(0, 1)).min() > 0.01  # else anything would agree
    np.testing.assert_allclose(serve(made_up.model, made_up.windows), expected, rtol=0, atol=TOLERANCE)


@needs_data
def test_published_weights_give_what_the_original_graph_gives(published: Case) -> None:
    expected = run_original_graph(standardise(published.windows))
    assert expected[3:, :, 1:].max() > 0.5  # the real windows hold phases
    np.testing.assert_allclose(serve(published.model, published.windows), expected, rtol=0, atol=TOLERANCE)


@needs_data
@pytest.mark.parametrize("source", ["noise_cx_chile", "ridgecrest_pal_auto", "uturuncu_nll_auto", "stead_50_sample"])
def test_original_graph_on_other_sources(published: Case, source: str) -> None:
    windows = np.array([trace[:, :3000].T for _, trace in real_traces(source, 8)], np.float32)
    expected = run_original_graph(standardise(windows))
    np.testing.assert_allclose(serve(published.model, windows), expected, rtol=0, atol=TOLERANCE)


@needs_data
def test_published_weights_find_the_labelled_phases(published: Case) -> None:
    windows, s = windows_around_p(40)
    found = serve(published.model, windows).argmax(axis=1)  # [n, label]
    assert np.mean(np.abs(found[:, 1] - 1000) < 50) > 0.8
    assert np.mean(np.abs(found[:, 2] - s) < 50) > 0.8


@needs_data
def test_published_files_agree(published: Case) -> None:
    np.testing.assert_array_equal(
        serve(load_phasenet_keras_h5(KERAS), published.windows), serve(published.model, published.windows)
    )


def test_both_formats_agree(made_up: Case, variables: dict[str, Array], tmp_path: Path) -> None:
    from_h5 = load_phasenet_keras_h5(write_h5(tmp_path / "phasenet.h5", variables))
    np.testing.assert_array_equal(serve(from_h5, made_up.windows), serve(made_up.model, made_up.windows))


def test_output_is_a_probability_for_any_batch(case: Case) -> None:
    for n in (1, len(case.windows)):
        probability = serve(case.model, case.windows[:n])
        assert probability.dtype == np.float32
        assert probability.shape == (n, 3000, 3)
        np.testing.assert_allclose(probability.sum(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-14, 1e-7, 0.3, 1e9])
def test_amplitude_does_not_matter(case: Case, scale: float) -> None:
    windows = case.windows / np.abs(case.windows).max(axis=(1, 2), keepdims=True)
    scaled = (windows.astype(np.float64) * scale).astype(np.float32)
    np.testing.assert_allclose(serve(case.model, scaled), serve(case.model, windows), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("components", [[0], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("value", [1e-14, 1 / 3, -16777215.0, 1e9])
def test_constant_components_count_as_zeros(case: Case, components: list[int], value: float) -> None:
    windows = case.windows.copy()
    windows[:, :, components] = value
    constant = serve(case.model, windows)
    windows[:, :, components] = 0
    assert np.isfinite(constant).all()
    np.testing.assert_array_equal(constant, serve(case.model, windows))


@pytest.mark.parametrize("opset", [17, 18])
def test_onnx_gives_what_tensorflow_gives(case: Case, opset: int) -> None:
    converted, _ = tf2onnx.convert.from_function(
        case.model.serve, input_signature=case.model.serve.input_signature, opset=opset
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["waveform"]
    assert [node.name for node in session.get_outputs()] == ["probability"]
    windows = np.concatenate([case.windows, case.windows * np.float32(1e-14), case.windows * np.float32(1e4)])
    windows[0, :, 1] = 1 / 3  # constant
    for n in (1, len(windows)):
        (probability,) = session.run(None, {"waveform": windows[:n]})
        assert probability.dtype == np.float32
        np.testing.assert_allclose(probability, serve(case.model, windows[:n]), rtol=0, atol=TOLERANCE)


def test_saved_model_holds_the_same_function(made_up: Case, tmp_path: Path) -> None:
    tf.saved_model.save(made_up.model, str(tmp_path), signatures={"serving_default": made_up.model.serve})
    restored = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    probability = restored(waveform=tf.constant(made_up.windows))["probability"].numpy()
    np.testing.assert_array_equal(probability, serve(made_up.model, made_up.windows))


@pytest.mark.parametrize("load", [load_phasenet_tf1, load_phasenet_keras_h5])
def test_missing_path_is_named(load: Callable[[Path], tf.Module], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        load_phasenet_tf1(tmp_path)


def test_checkpoint_without_its_data(variables: dict[str, Array], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, variables)
    next(folder.glob("*.data-*")).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as a TensorFlow checkpoint"):
        load_phasenet_tf1(folder)


@pytest.mark.parametrize("name", ["UpConv_2/up_bn1_3/gamma", "Output/output_conv/bias"])
def test_missing_variable_is_named(variables: dict[str, Array], name: str, tmp_path: Path) -> None:
    rest = {key: value for key, value in variables.items() if key != name}
    with pytest.raises(ValueError, match=name.split("/", 1)[1]):
        load_phasenet_tf1(write_checkpoint(tmp_path, rest))
    with pytest.raises(ValueError, match=name.split("/", 1)[1]):
        load_phasenet_keras_h5(write_h5(tmp_path / "phasenet.h5", rest))


def test_wrong_shape_is_named(variables: dict[str, Array], tmp_path: Path) -> None:
    wrong = {**variables, "Input/input_conv/kernel": np.zeros((7, 1, 1, 8), np.float32)}
    with pytest.raises(ValueError, match=r"'input_conv/kernel' has shape \(7, 1, 1, 8\) instead of \(7, 1, 3, 8\)"):
        load_phasenet_tf1(write_checkpoint(tmp_path, wrong))


def test_file_that_is_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "phasenet.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        load_phasenet_keras_h5(tmp_path / "phasenet.h5")
