"""TensorFlow Serving's text files are read as they are, and what cannot be is refused by name."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from seisserve.errors import UsageError
from seisserve.proto.tensorflow_batching_pb2 import BatchingParameters
from seisserve_serving.configs import All, Latest, ModelConfig, Specific
from seisserve_serving.lanes import Batching
from seisserve_serving.text_config import read_batching, read_models

SPLIT = "enable_large_batch_splitting { value: true }"
SHIPPED = Path(__file__).parents[2] / "docker" / "models.config"


def write(folder: Path, text: str) -> Path:
    path = folder / "file.config"
    path.write_text(text)
    return path


def test_the_shipped_list_of_models_is_read() -> None:
    found = read_models(SHIPPED)
    assert ModelConfig("phasenet", Path("/models/phasenet"), "tensorflow") in found
    assert len(found) == len(SHIPPED.read_text().split("config {")) - 1


def test_every_field_means_what_it_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = """
        # comments, commas and both kinds of quotes, as the format allows
        model_config_list: {
          config: { name: 'a', base_path: "/abs/a", model_platform: "tensorflow" }
          config { name: "b" base_path: "b" model_version_policy { all {} } model_type: TENSORFLOW }
          config { name: "c" base_path: "c" model_version_policy { latest { num_versions: 3 } } }
          config {
            name: "d" base_path: "d" model_platform: "onnxruntime"
            model_version_policy { specific { versions: 2 versions: 43 } }
            version_labels { key: "stable" value: 2 } version_labels { key: "canary" value: 43 }
            logging_config { log_collector_config { type: "x" } sampling_config { sampling_rate: 0.1 } }
          }
        }"""
    a, b, c, d = read_models(write(tmp_path, text))
    assert a == ModelConfig("a", Path("/abs/a"), "tensorflow", Latest(1))
    assert (b.base_path, b.policy) == (tmp_path / "b", All())
    assert c.policy == Latest(3)
    assert (d.platform, d.policy) == ("onnxruntime", Specific(frozenset({2, 43})))
    assert d.labels == {"stable": 2, "canary": 43}
    assert "config 3 ('d'): logging_config is ignored" in caplog.text


LIST = "model_config_list {{ config {{ {} }} }}"
BAD = [
    ("", "is empty; it must have a model_config_list"),
    ("model_config_list {", "not a ModelServerConfig text file"),
    (LIST.format('name: "a" base_path: "a" colour: 1'), 'no field named "colour"'),
    (LIST.format('base_path: "a"'), r"config 0 \(''\): name and base_path must be there"),
    (LIST.format('name: "a"'), r"config 0 \('a'\): name and base_path must be there"),
    (LIST.format(r'name: "a" base_path: "a\000b"'), r"config 0 \('a'\): name and base_path .* zero character"),
    (LIST.format('name: "a" base_path: "a" } config { name: "a" base_path: "b"'), "config 1 .*there twice"),
    (LIST.format('name: "a" base_path: "a" model_platform: "torch"'), "model_platform is 'torch'; it must be"),
    (LIST.format('name: "a" base_path: "a" model_type: OTHER'), "model_platform"),
    (LIST.format('name: "a" base_path: "a" model_version_policy { specific {} }'), "specific must name versions"),
    (LIST.format('name: "a" base_path: "a" model_version_policy { specific { versions: -1 } }'), "specific"),
    (LIST.format('name: "a" base_path: "a" version_labels { key: "x" value: 0 }'), "version_labels has 'x': 0"),
    ("custom_model_config { type_url: 'x' }", "custom_model_config is not supported"),
    ("model_config_list { config { name: '\xff' ", "not a ModelServerConfig text file"),
]


@pytest.mark.parametrize(("text", "why"), BAD)
def test_a_list_of_models_that_cannot_be_is_refused_with_the_place(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"file.config.*{why}|{why}"):
        read_models(write(tmp_path, text))


PIECES = [
    "model_config_list", "config", "{", "}", ":", "name", "'a'", "base_path", "version_labels", "-1", "9" * 30, "\n",
    "model_version_policy", "specific", "versions", "[", "]", "<", ">", "/", "#", "custom_model_config",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_models, read_batching):
        with TemporaryDirectory() as folder, suppress(UsageError):
            path = Path(folder, "file.config")
            path.write_text(text, encoding="utf-8", errors="replace")
            read(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_models(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a ModelServerConfig text file"):
        read_models(tmp_path / "binary")


def test_batching_parameters_keep_their_names(tmp_path: Path) -> None:
    text = """
        max_batch_size { value: 32 }
        batch_timeout_micros { value: 500 }
        max_enqueued_batches { value: 7 }
        num_batch_threads { value: 2 }
        allowed_batch_sizes: 4
        allowed_batch_sizes: 32"""
    assert read_batching(write(tmp_path, text)) == Batching(
        max_batch_size=32, batch_timeout_micros=500, max_enqueued_batches=7, num_batch_threads=2,
        allowed_batch_sizes=(4, 32),
    )  # fmt: skip
    assert read_batching(write(tmp_path, "")) == Batching()


def test_what_is_computed_at_once_counts_where_large_requests_are_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = """
        max_batch_size { value: 1024 } enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 16 } allowed_batch_sizes: [4, 16]
        thread_pool_name { value: "x" } pad_variable_length_inputs: true"""
    with caplog.at_level(logging.WARNING):
        assert read_batching(write(tmp_path, text)) == Batching(max_batch_size=16, allowed_batch_sizes=(4, 16))
    for name in ("thread_pool_name", "pad_variable_length_inputs"):
        assert f"{name} is ignored" in caplog.text
    assert "splitting" not in caplog.text


@pytest.mark.parametrize("splitting", ["", "enable_large_batch_splitting { value: false }"])
def test_what_is_computed_at_once_means_nothing_where_large_requests_are_not_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, splitting: str
) -> None:
    """As in TensorFlow Serving. That large requests are split here all the same is told."""
    text = f"max_batch_size {{ value: 8 }} max_execution_batch_size {{ value: 4 }} {splitting}"
    with caplog.at_level(logging.WARNING):
        assert read_batching(write(tmp_path, text)) == Batching(max_batch_size=8)
    assert "max_execution_batch_size is ignored: it counts with enable_large_batch_splitting only" in caplog.text
    assert ("enable_large_batch_splitting is ignored: large requests are always split" in caplog.text) == bool(
        splitting
    )


def test_the_fields_are_those_of_tensorflow_serving() -> None:
    """Of session_bundle_config.proto: name, number, type."""
    wrapped = {"Int64Value": "int64", "StringValue": "string", "BoolValue": "bool"}
    assert {
        field.number: (field.name, wrapped[field.message_type.name] if field.message_type else field.type)
        for field in BatchingParameters.DESCRIPTOR.fields
    } == {
        1: ("max_batch_size", "int64"),
        2: ("batch_timeout_micros", "int64"),
        3: ("max_enqueued_batches", "int64"),
        4: ("num_batch_threads", "int64"),
        5: ("thread_pool_name", "string"),
        6: ("allowed_batch_sizes", FieldDescriptor.TYPE_INT64),
        7: ("pad_variable_length_inputs", FieldDescriptor.TYPE_BOOL),
        8: ("enable_large_batch_splitting", "bool"),
        9: ("max_execution_batch_size", "int64"),
    }


def test_an_unknown_parameter_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'text file: 3:1 : .*no field named "max_batch"'):
        read_batching(write(tmp_path, "# one\nmax_batch_size { value: 8 }\nmax_batch { value: 8 }\n"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size is 0; it must be at least 1"),
        ("num_batch_threads { value: -1 }", "num_batch_threads is -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches is 0"),
        ("batch_timeout_micros { value: -5 }", "batch_timeout_micros is -5; it must not be negative"),
        ("allowed_batch_sizes: 4 allowed_batch_sizes: 2", "allowed_batch_sizes"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "allowed_batch_sizes end with 4; max_batch_size is 8"),
        ("max_batch_size { value: 8193 }", "max_batch_size is 8193; it must be at most 8192"),
        ("allowed_batch_sizes: 9223372036854775807", "allowed_batch_sizes has 9223372036854775807; .* at most 8192"),
        (
            f"max_batch_size {{ value: 8 }} max_execution_batch_size {{ value: 16 }} {SPLIT}",
            "max_execution_batch_size is 16; it must be at most max_batch_size, 8",
        ),
        (
            f"max_batch_size {{ value: 8 }} max_execution_batch_size {{ value: 0 }} {SPLIT}",
            "max_execution_batch_size is 0; it must be at least 1",
        ),
        (
            f"max_batch_size {{ value: 64 }} max_execution_batch_size {{ value: 16 }} allowed_batch_sizes: 64 {SPLIT}",
            "allowed_batch_sizes end with 64; max_execution_batch_size is 16",
        ),
        ("max_batch_size: 8", "not a BatchingParameters text file"),
        ("maximum { value: 8 }", 'no field named "maximum"'),
    ],
)
def test_batching_parameters_that_cannot_be_are_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_batching(write(tmp_path, text))
