"""Plain SavedModels for tests: of several types and signatures, for examples, and a hostile one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

signatures = tf.compat.v1.saved_model.signature_def_utils


def add_typed(base: Path, version: int) -> Path:
    """`serving_default`: `x` int32 [n, 2] and `half` float16 [n, 2] give `sum` and `parity`; `scale`: a scalar and any
    float64 give their product; `shout`: strings."""
    module: Any = tf.Module()

    @tf.function(input_signature=[
        tf.TensorSpec([None, 2], tf.int32, "x"), tf.TensorSpec([None, 2], tf.float16, "half"),
    ])  # fmt: skip
    def total(x: Any, half: Any) -> Any:
        return {"sum": tf.cast(x, tf.float16) + half, "parity": x % 2 == 0}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float64, "factor"), tf.TensorSpec(None, tf.float64, "of")])
    def scale(factor: Any, of: Any) -> Any:
        return {"product": factor * of}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def shout(text: Any) -> Any:
        return {"loud": tf.strings.upper(text)}

    folder = base / str(version)
    kinds = {"serving_default": total, "scale": scale, "shout": shout}
    tf.saved_model.save(module, str(folder), signatures=kinds)
    return folder


def add_examples(base: Path, version: int) -> Path:
    """Of the feature `x` (two floats): `classify` gives the labels `low` and `high` with the two as scores, `regress`
    their sum, `both_ways` (the usual signature) is a plain prediction."""
    folder = base / str(version)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        examples = tf.compat.v1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        classes = tf.tile(tf.constant([["low", "high"]]), [tf.shape(x)[0], 1])
        total = tf.reduce_sum(x, axis=1, keepdims=True)
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        maps = {
            "classify": signatures.classification_signature_def(examples, classes, x),
            "scores": signatures.classification_signature_def(examples, None, x),
            "regress": signatures.regression_signature_def(examples, total),
            "serving_default": signatures.predict_signature_def({"inputs": examples}, {"x": x}),
        }
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], signature_def_map=maps)
        builder.save()
    return folder


def add_reader(base: Path, version: int) -> Path:
    """A network that reads a file of the server's when it is called."""
    module: Any = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, "path")])
    def read(path: Any) -> Any:
        return {"content": tf.io.read_file(path)}

    folder = base / str(version)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": read})
    return folder
