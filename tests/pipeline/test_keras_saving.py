"""A sampler's state in Keras's own files."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from pipeline import LossFeedback, importance_dataset
from pipeline.keras_saving import carried, carry
from sampler import ImportanceSampler
from tests.sampler.states import same

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy"),  # Keras's own
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),  # of a model that was never trained
]

N, B = 40, 8
X, Y = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32), np.ones((N, 2), np.float32)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(2)

    def call(self, x):
        return self.out(x)


def model(kind="sequential"):
    if kind == "subclassed":
        made = Subclassed()
        made(X[:1])
    else:
        inputs = keras.Input((3,))
        layers = [inputs, keras.layers.Dense(2)]
        made = keras.Sequential(layers) if kind == "sequential" else keras.Model(inputs, layers[1](inputs))
    made.compile("adam", "mse")
    return made


def sampler(seed=0, trained=True):
    made = ImportanceSampler(N, smoothing=0.5, seed=seed)
    if trained:
        draw = made.draw(B)
        made.update(draw.index, np.arange(1.0, B + 1), step=draw.step)
    return made


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
@pytest.mark.parametrize("file", ["run.weights.h5", "run.keras"])
def test_the_state_travels_with_the_weights(kind, file, tmp_path):
    path = str(tmp_path / file)
    first, known = model(kind), sampler()
    layers = list(first.layers)
    carry(first, known)
    assert first.layers == layers
    first.save(path) if file.endswith("keras") else first.save_weights(path)
    assert same(carried(path), known.state_dict())
    second, other = model(kind), sampler(seed=9, trained=False)
    carry(second, other)
    second.load_weights(path)
    assert same(other.state_dict(), known.state_dict())
    plain = model(kind)
    plain.load_weights(path)  # which knows nothing of samplers
    np.testing.assert_array_equal(plain(X), first(X))


def test_load_model_gives_a_plain_model(tmp_path):
    path = str(tmp_path / "run.keras")
    first = model()
    carry(first, sampler())
    first.save(path)
    loaded = keras.models.load_model(path)
    assert not hasattr(loaded, "sampler_state")
    np.testing.assert_array_equal(loaded(X), first(X))


def test_files_without_a_state_and_models_that_carry_none_any_more(tmp_path):
    path, first, known = str(tmp_path / "run.weights.h5"), model(), sampler()
    first.save_weights(path)
    with pytest.raises(KeyError, match="carried none"):
        carried(path)
    carry(first, known)
    carry(first, None)
    first.save_weights(path)
    with pytest.raises(KeyError, match="carried none"):
        carried(path)


def test_the_state_of_another_sampler_is_refused(tmp_path):
    path, first = str(tmp_path / "run.weights.h5"), model()
    carry(first, sampler())
    first.save_weights(path)
    other = ImportanceSampler(N + 1, seed=0)
    carry(first, other)
    with pytest.raises(ValueError, match="state is of 40 samples, the sampler has 41"):
        first.load_weights(path)
    assert other.step == 0


def test_backup_and_restore_brings_the_sampler_back(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                states.append(known.state_dict())
                raise KeyboardInterrupt

    states, first, known = [], model(), sampler(trained=False)
    carry(first, known)
    train = importance_dataset((X, Y), known, B, prefetch=0)
    backup = keras.callbacks.BackupAndRestore(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        first.fit(train, epochs=4, shuffle=False, verbose=0, callbacks=[LossFeedback(first, known), backup, Stop()])
    second, other = model(), sampler(seed=9, trained=False)
    carry(second, other)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append((epoch, other.state_dict())))
    train = importance_dataset((X, Y), other, B, prefetch=0)
    again = keras.callbacks.BackupAndRestore(str(tmp_path))
    second.fit(train, epochs=4, shuffle=False, verbose=0, callbacks=[LossFeedback(second, other), again, watch])
    assert [epoch for epoch, _ in seen] == [2, 3]
    assert same(seen[0][1], states[0])
