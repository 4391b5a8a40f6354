"""Made-up windows, and what the published EQTransformer says of them.

`eqtransformer_published.npz` holds, under the names of the two files, every 20th sample of what the authors' networks
gave for `windows()`, float32 [2, 300, 3] (detection, P, S). They were run once: EqT_model.h5 and EqT_model2.h5 loaded
whole with tf_keras 2.21 on TensorFlow 2.21, with the three layers that are not Keras' own (SeqSelfAttention,
LayerNormalization, FeedForward) written for it from their formulas; components in the order E, N, Z, each minus its
mean and over its standard deviation in float64; the rate of all dropout layers set to 0, since the files ask for
dropout while predicting, which gives other probabilities (by up to 0.3) each time.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "eqtransformer"
RECORDED = Path(__file__).with_name("eqtransformer_published.npz")
NAMES = ("EqT_model", "EqT_model2")
EVERY = 20


def windows() -> Array:
    """[2, 6000, 3], Z, N, E: an event of P and S in noise, and a weaker one with offsets. The same for ever."""
    random = np.random.RandomState(2020)  # unlike those of newer generators, its numbers never change
    made = []
    for height, p, s in ((30.0, 2000, 2600), (12.0, 1500, 2900)):
        window = random.standard_normal((6000, 3))
        for onset, frequency_hz, decay_s, shares in ((p, 8.0, 2.0, (1.0, 0.4, 0.3)), (s, 4.0, 4.0, (0.7, 1.6, 2.0))):
            time_s = np.maximum(np.arange(6000) - onset, 0) / 100
            burst = height * np.exp(-time_s / decay_s) * np.minimum(time_s / 0.05, 1)
            phases = random.uniform(0, 2 * np.pi, 3)
            window += np.array(shares) * burst[:, None] * np.sin(2 * np.pi * frequency_hz * time_s[:, None] + phases)
        made.append(window)
    made[1] = 1e-3 * made[1] + [5.0, -3.0, 0.0]
    return np.array(made, np.float32)


def recorded(name: str) -> Array:
    """Of EqT_model or EqT_model2."""
    with np.load(RECORDED) as arrays:
        return np.asarray(arrays[name])
