"""Every network of the zoo learns from made-up events within a minute, resumes, and is served as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from seisserve import bundle, runtime  # noqa: E402
from seisserve_training import training  # noqa: E402
from seisserve_training.bundles import golden_windows, write_bundle  # noqa: E402
from seisserve_training.config import Augmentation, Config, Data, Network, Schedule  # noqa: E402
from seisserve_training.examples import Examples  # noqa: E402
from seisserve_training.models import ARCHITECTURES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's and Keras's own

SIZES = {  # smaller than shipped where that is allowed; samples, filters, steps
    "basicphaseae": (600, 8, 200),
    "cred": (1000, 4, 40),
    "deepdenoiser": (3000, 4, 30),
    "deepphasepick": (480, 8, 100),
    "dncnn": (512, 8, 150),
    "eqtransformer": (6000, 4, 30),
    "gpd": (600, 8, 200),
    "onset": (1024, 8, 120),
    "phasenet": (1024, 8, 120),
    "recovery": (1024, 6, 60),
}


def config_of(kind: str) -> Config:
    samples, filters, steps = SIZES[kind]
    return Config(
        name=kind,
        data=Data(synthetic_share=1.0, synthetic_events=150),
        network=Network(kind=kind, window_samples=samples, filters=filters),  # type: ignore[arg-type]
        augmentation=Augmentation(
            superpose_noise=0, stack_events=0, channel_dropout=0, false_positive_noise=0, noise_windows=0.1
        ),
        schedule=Schedule(
            epochs=2, steps_per_epoch=steps, batch_size=16, seed=0, average=0.9, learning_rate=5e-3, warm_up_steps=10
        ),
    )


def rates(waveform: Any, target: Any, labels: int) -> Any:
    """What is said by one who knows how common each label is, and does not look at the waveform."""
    shares = tf.reduce_mean(target[..., :labels], axis=tuple(range(len(target.shape) - 1)), keepdims=True)
    return tf.ones_like(target[..., :labels]) * shares


def steps(waveform: Any, target: Any) -> Any:
    """Of DeepPhasePick: how common the classes are, and that an onset may have passed or not."""
    classes = rates(waveform, target, 3)[:, None, :] * tf.ones((1, 240, 1))
    return tf.concat([classes, 0.5 * tf.ones((len(target), 240, 2))], axis=2)


def unchanged(waveform: Any, target: Any) -> Any:
    """Of denoising and recovery: the waveform as it came."""
    return waveform


def undecided(waveform: Any, target: Any) -> Any:
    """Of EQTransformer, whose sigmoids begin at one half: within a minute they are on their way to the base rates."""
    return 0.2 * tf.ones_like(target[..., :3])


TRIVIAL: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("basicphaseae", "gpd", "onset", "phasenet"), lambda x, y: rates(x, y, 3)),
    "cred": lambda x, y: rates(x, y, 1),
    "deepphasepick": steps,
    "eqtransformer": undecided,
    **dict.fromkeys(("deepdenoiser", "dncnn", "recovery"), unchanged),
}


def test_no_network_is_left_out() -> None:
    assert set(SIZES) == set(TRIVIAL) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_it_learns_resumes_and_is_served(kind: str, tmp_path: Path) -> None:
    config, learn = config_of(kind), ARCHITECTURES[kind].learn
    half = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "record", lambda folder, epoch: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.train(config, half, [])  # stopped after the first epoch
    model = training.train(config, half, [])
    assert len((half / "history.csv").read_text().splitlines()) == 2  # the second epoch alone

    unseen = Examples([], msgspec.structs.replace(config, schedule=Schedule(seed=99, batch_size=32)))
    waveform, target = next(iter(training.stream_of(unseen, learn, 0)))
    training_mode = kind == "deepphasepick"  # which then says what its loss needs
    found = float(learn.loss(model(waveform, training=training_mode), target))
    assert found < float(learn.loss(TRIVIAL[kind](waveform, target), target))

    write_bundle(model, config, [], tmp_path / "bundle")
    one = bundle.read(tmp_path / "bundle")
    transport = runtime.load(one, "tensorflow")  # checks digest and golden outputs
    window = np.random.default_rng(0).normal(size=(2, *one.manifest.input.shape[1:])).astype(np.float32)
    served = transport.predict(one.manifest, {"waveform": window})[one.manifest.output.name]
    np.testing.assert_allclose(served, model(window, training=False), atol=1e-5, rtol=1e-4)


def test_golden_windows_of_recovery_are_clipped() -> None:
    windows = golden_windows(training.contract(config_of("recovery")))
    for window in windows[:4]:
        assert (np.abs(window) == np.abs(window).max(axis=0)).sum(axis=0).max() > 10
