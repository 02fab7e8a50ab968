"""The models that are trained, their data, and the ways of training them.

    setting = Setting(MODELS["cnn"], jit=False, steps=50, seed=0)
    contestant = Fit(trainer(FEEDBACK, setting))

============  =========================================================================================
``cnn``       two convolutions on images 28 x 28 x 1; about 8 ms a step at B = 128, plain, on two cores,
              and twice that compiled by XLA
``mlp``       two hidden layers on 64 features; about 2 ms a step at B = 256
``tiny``      next to nothing, for trying the benchmark out
============  =========================================================================================

The data are noise with labels at random: what is learnt does not matter here. All models of a setting begin with the
same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from benchmarks.step_names import ARRAYS, BARE_FEEDBACK, BARE_WEIGHTS, FEEDBACK, SCORE, WEIGHTS
from benchmarks.step_turns import EPOCHS
from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler

CLASSES = 10
LEAST_STEPS = 2  # of an epoch

Train = Callable[[keras.callbacks.Callback], Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A model, its batch size, and how long a step of it takes, roughly: as it is, and compiled by XLA."""

    layers: Callable[[], list[keras.layers.Layer]]
    shape: tuple[int, ...]
    batch: int
    plain_ms: float
    jitted_ms: float

    def steps_within(self, seconds: float, *, jit: bool) -> int:
        """Steps of an epoch that takes about so long."""
        return max(LEAST_STEPS, round(seconds * 1e3 / (self.jitted_ms if jit else self.plain_ms)))


def _cnn() -> list[keras.layers.Layer]:
    return [
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
    ]


def _mlp() -> list[keras.layers.Layer]:
    return [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(128, activation="relu")]


MODELS = {
    "cnn": Model(_cnn, (28, 28, 1), batch=128, plain_ms=8.0, jitted_ms=16.0),
    "mlp": Model(_mlp, (64,), batch=256, plain_ms=2.0, jitted_ms=2.0),
    "tiny": Model(lambda: [], (4,), batch=8, plain_ms=0.5, jitted_ms=0.5),
}


@dataclass(frozen=True)
class Setting:
    """One point: a model, compiled by XLA or not, and epochs of so many steps."""

    model: Model
    jit: bool
    steps: int
    seed: int
    weights: list[Any] = field(default_factory=list)  # of the first model made, for the others

    @property
    def batch(self) -> int:
        """B."""
        return self.model.batch

    @property
    def num_samples(self) -> int:
        """N: whole batches alone."""
        return self.steps * self.batch

    @cached_property
    def arrays(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """X and y."""
        generator = np.random.default_rng(self.seed)
        x = generator.random((self.num_samples, *self.model.shape), dtype=np.float32)
        return x, generator.integers(CLASSES, size=self.num_samples)

    def compiled(self, *, metrics: bool) -> keras.Model:
        """A new model that begins like all the others."""
        made = keras.Sequential(
            [keras.layers.Input(self.model.shape), *self.model.layers(), keras.layers.Dense(CLASSES)]
        )
        if self.weights:
            made.set_weights(self.weights)
        else:
            self.weights.extend(made.get_weights())
        made.compile(
            "adam",
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"] if metrics else None,
            jit_compile=self.jit,
        )
        return made

    def sampler(self, **options: Any) -> ImportanceSampler:
        """One that knows all losses, and so is past its first pass."""
        losses = np.random.default_rng(self.seed).gamma(2.0, size=self.num_samples)
        return ImportanceSampler(self.num_samples, losses=losses, seed=self.seed, **options)


def trainer(system: str, setting: Setting) -> Train:
    """``train(gate)``, which calls ``fit`` in the way that is called ``system``."""
    return TRAINERS[system](setting)


def _feedback(setting: Setting, *, metrics: bool = True, score: str | None = None) -> Train:
    """Batches drawn by this project, and the losses fed back."""
    sampler = setting.sampler() if score is None else setting.sampler(priority=score)
    dataset = importance_dataset(setting.arrays, sampler, setting.batch)
    model = setting.compiled(metrics=metrics)

    def train(gate: keras.callbacks.Callback) -> Any:
        feedback = LossFeedback(model, sampler, score=score)
        return model.fit(dataset, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[gate, feedback])

    return train


def _weights(setting: Setting, *, metrics: bool = True) -> Train:
    """The same batches with their weights as plain sample weights, and nothing fed back."""
    dataset = importance_dataset(setting.arrays, setting.sampler(), setting.batch)
    dataset = dataset.map(lambda x, y, sampling: (x, y, sampling["weight"]))
    model = setting.compiled(metrics=metrics)
    return lambda gate: model.fit(dataset, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[gate])


def _arrays(setting: Setting) -> Train:
    """Keras alone, on shuffled arrays."""
    model = setting.compiled(metrics=True)
    x, y = setting.arrays
    return lambda gate: model.fit(x, y, batch_size=setting.batch, epochs=EPOCHS, verbose=0, callbacks=[gate])


TRAINERS: dict[str, Callable[[Setting], Train]] = {
    FEEDBACK: _feedback,
    WEIGHTS: _weights,
    ARRAYS: _arrays,
    SCORE: lambda setting: _feedback(setting, score="gradient_norm"),
    BARE_FEEDBACK: lambda setting: _feedback(setting, metrics=False),
    BARE_WEIGHTS: lambda setting: _weights(setting, metrics=False),
}
