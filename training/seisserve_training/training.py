"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from seisserve.errors import UsageError
from seisserve.manifest import Label, Manifest, Tensor
from seisserve.transport import FakeTransport
from seisserve_training import fine_tuning
from seisserve_training.config import Config
from seisserve_training.datasets import Dataset, LabelledTrace, of_split, read_rows
from seisserve_training.examples import Examples
from seisserve_training.models import ARCHITECTURES
from seisserve_training.tasks.task import Pair, Task
from seisserve_training.teacher import teacher

__all__ = ["History", "contract", "forget", "keras_transport", "load", "network", "train"]

IN_MEMORY_BYTES = 4_000_000_000
WARM_UP_STEPS = 200  # at most; a twentieth of a short run


class History(NamedTuple):
    """One epoch: mean training loss, and the scores on dev (none without a dev split)."""

    epoch: int
    loss: float
    learning_rate: float
    dev: dict[str, float]


def network(config: Config) -> keras.Model:
    """The network that the configuration names, with fresh weights."""
    return ARCHITECTURES[config.network.kind].build(config.network, len(config.components))


def contract(config: Config) -> Manifest:
    """The manifest of a bundle with this network, before anything was measured. Raises UsageError for thresholds of
    labels that it does not have."""
    components, architecture = len(config.components), ARCHITECTURES[config.network.kind]
    serving = architecture.serve(config.network, components)
    if unknown := sorted(config.thresholds.keys() - serving.thresholds.keys()):
        known = ", ".join(serving.thresholds) or "none"
        raise UsageError(
            f"thresholds: {config.network.kind!r} has no label {', '.join(unknown)}; its labels are {known}"
        )
    return Manifest(
        name=config.name,
        task=architecture.task,
        summary=config.summary,
        licence="Apache-2.0",
        citation=architecture.citation,
        sampling_rate_hz=config.sampling_rate_hz,
        components=config.components,
        window_samples=serving.window_samples,
        fragment_windows=serving.fragment_windows,
        hop_samples=serving.hop_samples,
        stacking=serving.stacking,
        blinding_samples=serving.blinding_samples,
        edge_samples=serving.edge_samples,
        minimum_pick_distance_s=serving.minimum_pick_distance_s,
        input=Tensor(name="waveform", shape=(-1, serving.window_samples, components)),
        outputs=serving.outputs,
        labels={
            label: Label(threshold=threshold)
            for label, threshold in {**serving.thresholds, **config.thresholds}.items()
        },
    )


def train(config: Config, folder: Path, traces: Sequence[LabelledTrace], root: Path = Path()) -> keras.Model:
    """Train the network and return it with its best averaged weights; go on from the last checkpoint if there is one.

    folder: gets checkpoints, history.csv, history.png and, if asked for, tensorboard/. traces: labelled; splits train
    and dev are used. root: the folder that relative `fine_tune.init_from` and `teacher.bundle` begin at.
    """
    keras.utils.set_random_seed(config.schedule.seed)
    dev = of_split(traces, "dev")
    learn, manifest = ARCHITECTURES[config.network.kind].learn, contract(config)
    model = network(config)
    if config.fine_tune:
        fine_tuning.freeze(model, config.fine_tune.freeze)
        if not tf.train.latest_checkpoint(str(folder / "checkpoints")):
            tqdm.write(f"{config.fine_tune.init_from}: {fine_tuning.transfer(model, config, root)}")
    teach = teacher(config, root)
    optimizer = keras.optimizers.Adam(config.schedule.learning_rate)
    optimizer.build(model.trainable_variables)
    average = [tf.Variable(weight, trainable=False) for weight in model.weights]
    state = {name: tf.Variable(value, trainable=False) for name, value in (("epoch", 0), ("best_epoch", 0))}
    best_score = tf.Variable(float("-inf"), trainable=False)
    best = [tf.Variable(weight, trainable=False) for weight in model.weights]
    checkpoint = tf.train.Checkpoint(
        weights=list(map(_value, model.weights)), optimizer=list(map(_value, optimizer.variables)),
        average=average, best=best, best_score=best_score, **state,
    )  # fmt: skip
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoints"), max_to_keep=2)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()

    def apply_average() -> list[NDArray[np.float32]]:
        own: list[NDArray[np.float32]] = model.get_weights()
        model.set_weights([value.numpy() for value in average])
        return own

    @tf.function
    def step(waveform: tf.Tensor, target: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        target = teach(waveform, target)
        with tf.GradientTape() as tape:
            output = model(waveform, training=True)
            loss = learn.loss(output, target)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, model.trainable_variables)
        done = tf.cast(optimizer.iterations, tf.float32)
        forget = 1 - tf.minimum(config.schedule.average, done / (done + 10))  # short memory at first: forget the start
        for mean, weight in zip(average, model.weights, strict=True):
            mean.assign_add(forget * (weight.value - mean))
        return loss

    first = int(state["epoch"])
    steps, batch = config.schedule.steps_per_epoch, config.schedule.batch_size
    examples = Examples(of_split(traces, "train"), config)
    board = tf.summary.create_file_writer(str(folder / "tensorboard")) if config.schedule.tensorboard else None
    stream = iter(stream_of(examples, learn, first * steps * batch))
    for epoch in range(first, config.schedule.epochs):
        if epoch - int(state["best_epoch"]) > config.schedule.patience:
            break
        losses = []
        progress = tqdm(range(steps), desc=f"epoch {epoch + 1}/{config.schedule.epochs}", disable=None, leave=False)
        for number in progress:
            rate = learning_rate(config, epoch * steps + number)
            losses.append(float(step(*next(stream), tf.constant(rate, tf.float32))))
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
        own = apply_average()
        scores = learn.scores(dev, manifest, keras_transport(model), config.data.incomplete) if dev else {}
        score = float(np.mean(list(scores.values()))) if dev else float(epoch)
        if score > float(best_score):
            best_score.assign(score)
            state["best_epoch"].assign(epoch)
            for kept, weight in zip(best, model.weights, strict=True):
                kept.assign(weight.value)
        model.set_weights(own)
        state["epoch"].assign(epoch + 1)
        manager.save()
        history = History(epoch + 1, float(np.mean(losses)), rate, scores)
        record(folder, history)
        if board:
            summarise(board, history)
    model.set_weights([value.numpy() for value in best])
    fine_tuning.keep(model, config, root)
    return model


def load(config: Config, data_root: Path) -> Sequence[LabelledTrace]:
    """All traces of the train and dev splits that the configuration names, in memory or not (`data.in_memory`).

    Raises UsageError if a source that is to be left out is not there.
    """
    rows = [row for path in config.data.paths for row in read_rows((data_root / path).resolve())]
    if unknown := sorted(set(config.data.without) - {row.source for row in rows}):
        raise UsageError(f"data.without: {', '.join(unknown)} is no source of {', '.join(config.data.paths)}")
    rows = [row for row in rows if row.split != "test" and row.source not in config.data.without]
    data = Dataset(rows, config.sampling_rate_hz, config.components)
    in_memory = config.data.in_memory
    if in_memory is False or (in_memory == "auto" and data.size_bytes > IN_MEMORY_BYTES):
        return data
    return [data.load(row) for row in tqdm(rows, desc="reading", disable=None, leave=False)]


def stream_of(examples: Examples, learn: Task, start: int) -> tf.data.Dataset:
    """Batches of the endless stream of windows and targets from number `start` on, made in the background."""
    shapes = [array.shape for array in learn.pair(examples, examples.generator(start))]

    def make(number: int) -> Pair:
        return learn.pair(examples, examples.generator(number))

    def tensors(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        waveform, target = tf.numpy_function(make, [number], [tf.float32, tf.float32], stateful=False)
        waveform.set_shape(shapes[0])
        target.set_shape(shapes[1])
        return waveform, target

    numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    batch = examples.config.schedule.batch_size
    return numbers.map(tensors, num_parallel_calls=2, deterministic=True).batch(batch).prefetch(4)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then as `schedule.decay` says over all steps."""
    schedule = config.schedule
    total = schedule.epochs * schedule.steps_per_epoch
    warm_up = min(WARM_UP_STEPS, max(total // 20, 1)) if schedule.warm_up_steps is None else schedule.warm_up_steps
    warm = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    if schedule.decay == "constant":
        return schedule.learning_rate * warm
    if schedule.decay == "exponential":
        return schedule.learning_rate * warm * float(schedule.decay_to ** (step / total))
    return schedule.learning_rate * warm * 0.5 * (1 + float(np.cos(np.pi * step / total)))


def keras_transport(model: keras.Model) -> FakeTransport:
    """A transport that runs a Keras model as it stands."""
    call = tf.function(lambda waveform: model(waveform, training=False), reduce_retracing=True)
    return FakeTransport(lambda waveform: np.asarray(call(tf.constant(waveform))))


def forget(folder: Path) -> None:
    """Remove what a run has left in its folder."""
    for left in (folder / "checkpoints", folder / "tensorboard", *folder.glob("seed_*")):
        shutil.rmtree(left, ignore_errors=True)
    for name in ("history.csv", "history.png"):
        (folder / name).unlink(missing_ok=True)


def record(folder: Path, epoch: History) -> None:
    """Add an epoch to history.csv and draw history.png anew."""
    path = folder / "history.csv"
    row = {"epoch": epoch.epoch, "loss": epoch.loss, "learning_rate": epoch.learning_rate, **epoch.dev}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    draw(rows, folder / "history.png")


def summarise(board: Any, epoch: History) -> None:
    """Add an epoch to what TensorBoard shows. Its own package is not needed for that."""
    scalar = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_SCALAR", plugin_data={"plugin_name": "scalars"})
    dev = {f"dev/{name}": value for name, value in epoch.dev.items()}
    with board.as_default(step=epoch.epoch):
        for name, value in {"loss": epoch.loss, "learning_rate": epoch.learning_rate, **dev}.items():
            tf.summary.write(name, tf.constant(value, tf.float32), metadata=scalar)
    board.flush()


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """The loss and the dev scores over the epochs, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure((8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in rows]
    above.plot(epochs, [row["loss"] for row in rows], "k.-")
    above.set(ylabel="training loss")
    for name in [key for key in rows[0] if key not in ("epoch", "loss", "learning_rate")]:
        below.plot(epochs, [row[name] for row in rows], ".-", label=name)
    below.set(xlabel="epoch", ylabel="on dev")
    if below.lines:
        below.legend()
    figure.savefig(path)


def _value(variable: Any) -> tf.Variable:
    """The TensorFlow variable inside a Keras one."""
    return variable.value
