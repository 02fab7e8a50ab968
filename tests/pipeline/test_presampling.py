"""Presampling: exactly unbiased, in proportion to the score, over streams of every kind, and in ``fit``."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback
from pipeline.presampling import Presampler
from sampler import draws, priorities
from sampler.stores import ProportionalStore
from tests.sampler.chance import count_variance, suspects

N, B, M, K = 24, 4, 12, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
SPARSE = keras.losses.SparseCategoricalCrossentropy


def network(*layers: keras.layers.Layer, rate: float = 0.0, **options: Any) -> keras.Model:
    """A compiled classifier that stands still unless it has a learning rate."""
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(K)])
    model.compile(keras.optimizers.SGD(rate), SPARSE(from_logits=True), metrics=["accuracy"], **options)
    return model


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, CLASSES))


def losses_and_norms(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Of all N samples, in float64 from the logits: -log p_y, and ‖softmax - onehot‖."""
    logits = model(X, training=False).numpy().astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(shares[np.arange(N), CLASSES]), np.linalg.norm(shares - np.eye(K)[CLASSES], axis=1)


def drawn(train: tf.data.Dataset) -> list[dict[str, np.ndarray]]:
    return [{name: part.numpy() for name, part in sampling.items()} for *_, sampling in train]


# --- the draws ------------------------------------------------------------------------------------


class Fixed:
    """A generator whose every uniform number is the same."""

    def __init__(self, uniform: float) -> None:
        self.uniform = uniform

    def random(self, count: int | None = None) -> Any:
        return self.uniform if count is None else np.full(count, self.uniform)

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


def expectation(presampler: Presampler, scores: np.ndarray, values: Any, monkeypatch: Any) -> Any:
    """E of ``values(places, weight)`` over the uniform number of the systematic scheme, piece by piece.

    What is drawn changes only where a threshold (t + u) / B passes the end of a sample's share, so the mean over
    the pieces between is the integral. In the stratified scheme each draw by itself is distributed the same.
    """
    store = ProportionalStore(scores.size)
    store.fill(scores)
    ends = np.cumsum(store.probabilities(presampler._uniform_fraction)) * presampler.batch_size
    cuts = np.unique(np.concatenate([[0.0, 1.0], ends % 1.0]))
    total = 0.0
    for low, high in itertools.pairwise(cuts):
        monkeypatch.setattr(np.random, "default_rng", lambda *_, u=(low + high) / 2: Fixed(u))
        places, _, weight, _ = presampler.choose(scores, None)
        total += (high - low) * values(places, weight)
    return total


@pytest.mark.parametrize("scheme", ["systematic", "stratified"])
@pytest.mark.parametrize("uniform_fraction", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("candidates", [M, 7, 3])  # a whole batch, and what may be left at the end of a stream
def test_the_weighted_batch_is_the_mean_over_the_candidates(
    scheme: str, uniform_fraction: float, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    presampler = Presampler(
        network(), B, presample=3, priority="loss", scheme=scheme, uniform_fraction=uniform_fraction, seed=0
    )
    scores, values = RNG.lognormal(sigma=2.0, size=candidates), RNG.normal(size=candidates)
    estimate = expectation(presampler, scores, lambda place, weight: np.mean(weight * values[place]), monkeypatch)
    assert estimate == pytest.approx(values.mean(), rel=1e-9)
    if uniform_fraction < 1.0:  # the weights are what it takes
        bare = expectation(presampler, scores, lambda place, _: np.mean(values[place]), monkeypatch)
        assert bare != pytest.approx(values.mean(), rel=1e-3)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_samples_are_drawn_in_proportion_to_their_score(scheme: str) -> None:
    """False alarms: 1e-8 each."""
    rounds, scores = 4_000, np.array([0.1, 3.0, 1.0, 0.5, 2.0, 0.0, 1.4, 4.0])
    presampler = Presampler(network(), B, presample=2, priority="loss", scheme=scheme, uniform_fraction=0.2, seed=1)
    p = 0.8 * scores / scores.sum() + 0.2 / scores.size
    counts = np.zeros(scores.size)
    for round_ in range(rounds):
        places, probability, weight, step = presampler.choose(scores, None)
        counts += np.bincount(places, minlength=scores.size)
        np.testing.assert_allclose(probability, p[places], rtol=1e-6)
        np.testing.assert_allclose(weight, 1.0 / (scores.size * p[places]), rtol=1e-6)
        assert step == round_
    variance = rounds * count_variance(scheme, B * p, B)
    assert not suspects(counts, rounds * B * p, variance).size
    wrong = np.full(scores.size, rounds * B / scores.size)  # uniform draws would be told apart
    assert suspects(counts, wrong, np.maximum(variance, rounds * B / scores.size)).size


def test_the_order_within_a_batch_is_random_too() -> None:
    presampler = Presampler(network(), B, priority="loss", seed=0)
    firsts = [presampler.choose(np.ones(M), None)[0][0] for round_ in range(50)]
    assert max(firsts) > M / 2  # ascending draws begin in the first quarter


def test_scores_that_are_not_finite_count_as_the_mean_of_the_others() -> None:
    presampler = Presampler(network(), B, priority="loss", uniform_fraction=0.0)
    losses = np.array([1.0, np.nan, 3.0, np.inf])
    places, probability, *_ = presampler.choose(losses, None)
    expected = np.array([1.0, 2.0, 3.0, 2.0]) / 8.0 * len(losses) / len(presampler)
    np.testing.assert_allclose(probability, expected[places], rtol=1e-6)
    places, probability, *_ = presampler.choose(np.full(M, np.nan), None)
    np.testing.assert_allclose(probability, 1.0 / M)


# --- what they are drawn by -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "score"),
    [
        ("gradient_norm", lambda losses, norms: norms),
        ("loss", lambda losses, norms: losses),
        ("sqrt", lambda losses, norms: np.sqrt(losses)),
        ("bounded", lambda losses, norms: 1.0 - np.exp(-losses)),
        (priorities.power(0.5, 0.1), lambda losses, norms: np.sqrt(losses + 0.1)),
    ],
)
@pytest.mark.every(2)
def test_the_score_is_of_the_model_as_it_is(priority: Any, score: Any) -> None:
    model = network(keras.layers.Dense(6, "relu"))
    train = dataset().apply(Presampler(model, B, presample=N / B, priority=priority, seed=0))
    for _ in range(2):
        ((x, y, sampling),) = train
        q = score(*losses_and_norms(model))
        index = sampling["index"].numpy()
        np.testing.assert_allclose(sampling["probability"], (0.9 * q / q.sum() + 0.1 / N)[index], rtol=1e-5)
        np.testing.assert_allclose(sampling["weight"], 1.0 / (N * sampling["probability"].numpy()), rtol=1e-6)
        np.testing.assert_array_equal(x, X[index])
        np.testing.assert_array_equal(y, CLASSES[index])
        for variable in model.trainable_variables:  # another model now
            variable.assign(RNG.normal(size=variable.shape))


def test_a_loss_of_one_s_own_and_a_layer_by_name() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = keras.layers.Dense(4, "tanh"), keras.layers.Dense(K, "softmax", name="head")

        def call(self, x: Any) -> Any:
            return self.head(self.hidden(x))

    model = Net()  # neither built nor compiled
    presampler = Presampler(model, B, presample=N / B, loss="sparse_categorical_crossentropy", at="head", seed=0)
    with pytest.raises(ValueError, match="layer of a subclassed model"):
        dataset().apply(Presampler(model, B, loss="sparse_categorical_crossentropy"))
    ((*_, sampling),) = dataset().apply(presampler)
    q = np.linalg.norm(model(X).numpy() - np.eye(K)[CLASSES], axis=1)
    expected = (0.9 * q / q.sum() + 0.1 / N)[sampling["index"].numpy()]
    np.testing.assert_allclose(sampling["probability"], expected, rtol=1e-5)


def test_scoring_changes_nothing_of_the_model() -> None:
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    before, own = [variable.numpy().copy() for variable in model.variables], set(vars(model))
    scores = [sampling["probability"] for sampling in drawn(dataset().apply(Presampler(model, B, seed=0)).repeat(3))]
    assert len(scores) == 3 * N / M
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert set(vars(model)) == own
    assert "call" not in vars(model.layers[-1])


# --- streams --------------------------------------------------------------------------------------


def test_an_epoch_is_one_batch_of_every_m_samples() -> None:
    keras.utils.set_random_seed(0)  # the weights of the last batch, below, are those of one model
    for size, batches in ((24, 2), (25, 3), (3, 1)):
        stream = dataset().repeat().take(size)
        train = stream.apply(Presampler(network(), B, seed=0))
        assert int(train.cardinality()) == batches
        found = drawn(train)
        assert len(found) == batches
        for place, sampling in enumerate(found):
            assert (sampling["index"] // M == place).all()
            assert (sampling["index"] < size).all()
            assert sampling["index"].shape == (B,)
    left = found[-1]  # all of 3: the batch is an estimate of the mean over these
    assert float(left["weight"].min()) > 0
    q = losses_and_norms(network())[1][:3]
    assert q.shape == (3,)
    np.testing.assert_allclose(left["weight"], 1.0 / (M * left["probability"]), rtol=1e-6)
    assert np.mean(left["weight"]) == pytest.approx(1.0, abs=0.5)


def endless() -> Iterator[tuple[np.ndarray, np.int64]]:
    generator = np.random.default_rng(3)
    while True:
        label = generator.integers(K)
        yield np.full(5, label, np.float32), label


def test_endless_and_unindexed_streams_stay_so() -> None:
    assert int(dataset().repeat().apply(Presampler(network(), B)).cardinality()) == tf.data.INFINITE_CARDINALITY
    spec = (tf.TensorSpec((5,), tf.float32), tf.TensorSpec((), tf.int64))
    train = tf.data.Dataset.from_generator(endless, output_signature=spec).apply(Presampler(network(), B, seed=0))
    assert int(train.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    presented = [label for label, _ in zip((label for _, label in endless()), range(3 * M), strict=False)]
    for place, (x, y, sampling) in enumerate(train.take(3)):
        index = sampling["index"].numpy()
        assert (index // M == place).all()
        np.testing.assert_array_equal(y, np.array(presented)[index])
        np.testing.assert_array_equal(x.numpy()[:, 0], y)
        np.testing.assert_array_equal(sampling["step"], place)


class Named(keras.Model):
    """Takes ``{"text": strings, "tokens": ragged, "x": numbers}``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.layers.Dense(K)

    def call(self, inputs: Any) -> Any:
        size = tf.cast(tf.strings.length(inputs["text"]), tf.float32)
        count = tf.cast(inputs["tokens"].row_lengths(), tf.float32)
        return self.head(tf.concat([inputs["x"], size[:, None], count[:, None]], axis=1))


def test_structures_strings_and_ragged_tensors_arrive_as_they_were() -> None:
    words = np.array(["w" * (1 + i % 5) for i in range(N)])
    tokens = tf.ragged.constant([list(range(i % 4)) for i in range(N)])
    weights = np.arange(N, dtype=np.float32)
    stream = tf.data.Dataset.from_tensor_slices(({"text": words, "tokens": tokens, "x": X}, CLASSES, weights))
    model = Named()
    model.head.build((None, 7))
    model.built = True
    for x, y, sampling in stream.apply(Presampler(model, B, loss=SPARSE(from_logits=True), priority="loss")):
        index = sampling["index"].numpy()
        np.testing.assert_array_equal(x["text"], words[index].astype(bytes))
        assert x["tokens"].to_list() == tf.gather(tokens, index).to_list()
        np.testing.assert_array_equal(x["x"], X[index])
        np.testing.assert_array_equal(y, CLASSES[index])
        np.testing.assert_array_equal(sampling["sample_weight"], weights[index])


def test_one_seed_fixes_the_draws_and_another_iteration_has_others() -> None:
    model = network()
    first, again = (drawn(dataset().apply(Presampler(model, B, seed=5)).repeat(2)) for _ in range(2))
    other = drawn(dataset().apply(Presampler(model, B, seed=6)).repeat(2))
    assert len(first) == 4
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one["index"], two["index"]) for one, two in zip(first, other, strict=True))
    assert any(not np.array_equal(one["index"], two["index"]) for one, two in zip(first[:2], first[2:], strict=True))
    np.testing.assert_array_equal([sampling["step"][0] for sampling in first], np.arange(4))


def test_a_state_goes_on_with_the_draws_that_would_have_come() -> None:
    model = network()
    presampler = Presampler(model, B, priority="clipped", seed=5)
    stream = dataset().repeat()
    drawn(stream.apply(presampler).take(2))
    state = presampler.state_dict()
    expected = drawn(stream.skip(2 * M).apply(presampler).take(2))
    other = Presampler(model, B, priority="clipped", seed=6)
    other.load_state_dict(state)
    for one, two in zip(expected, drawn(stream.skip(2 * M).apply(other).take(2)), strict=True):
        np.testing.assert_array_equal(one["index"], two["index"])
        np.testing.assert_array_equal(one["weight"], two["weight"])
    assert expected[0]["step"][0] == 2  # steps are never given twice
    assert other.summary() == presampler.summary()
    with pytest.raises(ValueError, match="scored must be at least 0"):
        other.load_state_dict({**state, "counts": {**state["counts"], "scored": -1}})
    assert other.summary() == presampler.summary()


def test_nothing_stays_behind_and_iterations_add_no_graphs() -> None:
    from tensorflow.python.ops import script_ops  # where TensorFlow keeps Python functions

    model = network()
    presampler = Presampler(model, B, seed=0)
    train = dataset().apply(presampler)
    list(train)
    known = script_ops._py_funcs.size()
    for _ in range(20):
        list(train)
    assert script_ops._py_funcs.size() == known
    held = weakref.ref(presampler)
    del train, presampler
    gc.collect()
    assert held() is None


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}],
    ids=["graph", "xla", "eager", "two steps"],
)
@pytest.mark.every(2)
def test_fit_trains_on_the_weighted_loss_and_reports_it(options: dict[str, Any]) -> None:
    model = network(keras.layers.Dropout(0.0), **options)
    presampler = Presampler(model, B, presample=3, seed=0)
    history = model.fit(
        dataset().apply(presampler), callbacks=[LossFeedback(model, presampler)], shuffle=False, verbose=0
    ).history
    losses, _ = losses_and_norms(model)
    weighted = [
        np.mean(sampling["weight"] * losses[sampling["index"]])
        for sampling in drawn(dataset().apply(Presampler(model, B, presample=3, seed=0)))
    ]
    assert history["loss"][0] == pytest.approx(np.mean(weighted), rel=1e-5)
    assert history["sampling/unseen"] == [0.0]
    summary = presampler.summary()
    assert (summary["step"], summary["scored"], summary["updates"], summary["nonfinite"]) == (N / M, N, N / M, 0)
    assert summary["max_weight"] <= 10.0
    assert presampler.seconds > 0.0


def test_the_gradient_is_that_of_the_weighted_loss() -> None:
    model = network(rate=0.5)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile("sgd", SPARSE(from_logits=True))
    ((x, y, sampling),) = dataset().apply(Presampler(twin, B, presample=N / B, seed=0))
    with tf.GradientTape() as tape:
        losses = SPARSE(from_logits=True, reduction=None)(y, twin(x))
        loss = tf.reduce_mean(sampling["weight"] * losses)
    steps = tape.gradient(loss, twin.trainable_variables)
    presampler = Presampler(model, B, presample=N / B, seed=0)
    model.fit(dataset().apply(presampler), callbacks=[LossFeedback(model, presampler)], shuffle=False, verbose=0)
    for before, after, step in zip(twin.trainable_variables, model.trainable_variables, steps, strict=True):
        np.testing.assert_allclose(after, before - 0.5 * step, rtol=1e-5, atol=1e-6)


def test_training_comes_out_the_same_bit_for_bit_in_mixed_precision_too() -> None:
    def train() -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = network(keras.layers.Dense(6, "relu", dtype="mixed_float16"), keras.layers.Dropout(0.3), rate=0.1)
        presampler = Presampler(model, B, seed=0)
        stream = dataset().shuffle(N, seed=2).repeat().apply(presampler)
        model.fit(
            stream, epochs=2, steps_per_epoch=4, callbacks=[LossFeedback(model, presampler)], shuffle=False, verbose=0
        )
        return list(model.get_weights())

    first, again = train(), train()
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert all(np.isfinite(weights).all() for weights in first)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"presample": 0.5}, r"presample must be in \[1, inf\), got 0.5"),
        ({"uniform_fraction": 1.5}, r"uniform_fraction must be in \[0, 1\], got 1.5"),
        ({"scheme": "without_replacement"}, "scheme must be one of 'systematic', 'stratified', 'multinomial'"),
        ({"priority": "norm"}, "priority must be one of"),
        ({"priority": priorities.relative(np.ones(3))}, "a stream has no index, which priority=relative"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Presampler(network(), **{"batch_size": B, **options})


def test_what_cannot_be_scored_is_refused_when_it_is_applied() -> None:
    with pytest.raises(ValueError, match=r"needs samples of \(x, y\)"):
        tf.data.Dataset.from_tensor_slices(X).apply(Presampler(network(), B))
    with pytest.raises(TypeError, match=r"tf.sparse.to_dense"):
        tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(X), CLASSES)).apply(Presampler(network(), B))
    with pytest.raises(ValueError, match="not compiled with a loss"):
        dataset().apply(Presampler(keras.Sequential([keras.layers.Dense(K)]), B))
    inputs = keras.Input((5,))
    two = keras.Model(inputs, [keras.layers.Dense(K)(inputs), keras.layers.Dense(1)(inputs)])
    two.compile("sgd", [SPARSE(from_logits=True), "mse"])
    with pytest.raises(ValueError, match="losses for 2 outputs"):
        tf.data.Dataset.from_tensor_slices((X, (CLASSES, CLASSES))).apply(Presampler(two, B))


def test_what_the_priority_refuses_ends_the_iteration_with_its_words() -> None:
    negative = Presampler(network(), B, loss=lambda y, z: -tf.ones(tf.shape(z)[0]), priority="sqrt")
    with pytest.raises(tf.errors.OpError, match="needs losses ≥ 0"):
        list(dataset().apply(negative))


def test_the_schemes_are_those_of_the_samplers() -> None:
    for scheme in ("systematic", "stratified", "multinomial"):
        assert Presampler(network(), B, scheme=scheme)._scheme is draws.NAMED[scheme]
