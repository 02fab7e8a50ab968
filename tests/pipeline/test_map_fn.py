"""``map_fn``: single elements after the draw, in parallel, in the order and with the weights of the draw."""

from __future__ import annotations

import threading
import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset, importance_sampling
from sampler import ImportanceSampler

N, B = 23, 5
X = np.arange(N, dtype=np.float32)[:, None] * 10
Y = np.arange(N)


def known(size: int = N, **options: Any) -> ImportanceSampler:
    """A sampler past its first pass."""
    return ImportanceSampler(size, losses=np.arange(1.0, size + 1), **{"seed": 0, **options})


def trained_on(sampler: ImportanceSampler, **options: Any) -> list[Any]:
    """Two epochs of batches, the losses of each fed back before the next is asked for."""
    seen = []
    for _ in range(2):
        for batch in importance_dataset((X, Y), sampler, B, **options):
            sampler.update(batch[-1]["index"], 1.0 + batch[-1]["index"].numpy() % 4, step=batch[-1]["step"])
            seen.append(batch)
    return seen


@pytest.mark.parametrize("calls", [None, 1, 4])
@pytest.mark.parametrize("lag", [None, 3, 5])
@pytest.mark.each_value
def test_elements_are_mapped_and_nothing_else_changes(calls: int | None, lag: int | None) -> None:
    """The calls end in another order than they begin in: the first of a batch last."""

    def slow(y: np.ndarray) -> np.ndarray:
        time.sleep(0.01 if y % 3 == 0 else 0.0)
        return np.float32(10 * y + 1)

    def change(x: tf.Tensor, y: tf.Tensor) -> Any:
        return tf.ensure_shape(tf.numpy_function(slow, [y], tf.float32), ()), {"twice": (2 * y, x)}

    # Without a lag it is a matter of chance which losses a draw knows; draws that are uniform do not depend on it.
    share = 1.0 if lag is None else 0.3
    one, other = (ImportanceSampler(N, seed=0, feedback_lag=lag, uniform_fraction=share) for _ in range(2))
    mapped = trained_on(one, map_fn=change, num_parallel_calls=calls)
    plain = trained_on(other)
    assert len(mapped) == len(plain) == 10
    for (x, y, sampling), (_, index, expected) in zip(mapped, plain, strict=True):
        np.testing.assert_array_equal(x, 10 * index.numpy() + 1)
        np.testing.assert_array_equal(y["twice"][0], 2 * index)
        np.testing.assert_array_equal(y["twice"][1], X[index])
        for name, values in expected.items():
            np.testing.assert_array_equal(sampling[name], values)
            assert sampling[name].shape == (B,)


@pytest.mark.parametrize(
    ("data", "map_fn", "structure"),
    [
        (X, lambda x: (x, x[0]), "x, y"),
        ((X, Y), lambda x, y: x, "x"),
        ((X, Y), lambda x, y: (x, y, 2.0), "weighted"),
        ({"x": X, "y": Y}, lambda element: (element["x"], element["y"]), "x, y"),
        ((X, Y, X[:, 0]), lambda x, y, weight: (x, y, weight + 1), "weighted"),
        ((X, Y, Y, Y), lambda x, y, _, __: (x, y), "x, y"),
    ],
)
def test_what_it_is_called_with_and_what_it_may_return(data: Any, map_fn: Any, structure: str) -> None:
    for batch in importance_dataset(data, known(), B, map_fn=map_fn):
        assert len(batch) == (2 if structure == "x" else 3)
        assert ("sample_weight" in batch[-1]) == (structure == "weighted")
        np.testing.assert_array_equal(batch[0], X[batch[-1]["index"]])


def test_four_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"elements must be x, \(x, y\) or \(x, y, sample_weight\), got a tuple of 4"):
        importance_dataset((X, Y), known(), B, map_fn=lambda x, y: (x, y, y, y))


@pytest.mark.parametrize(("calls", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_the_number_of_calls_is_checked(calls: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_parallel_calls must be"):
        importance_dataset((X, Y), known(), B, map_fn=lambda *element: element, num_parallel_calls=calls)


@pytest.mark.parametrize(("batch_size", "lag", "calls"), [(1, 2, None), (5, 1, None), (5, 1, 1), (5, 3, None)])
@pytest.mark.each_value
def test_a_slow_step_under_a_short_lag(batch_size: int, lag: int, calls: int | None) -> None:
    """Draws do not wait for the training of batches that wait in front of them, so that the time-out cannot pass."""
    sampler = known(feedback_lag=lag, feedback_timeout=0.3)
    train = importance_dataset((X, Y), sampler, batch_size, map_fn=lambda *element: element, num_parallel_calls=calls)
    for number, (_, _, sampling) in enumerate(train.take(4)):
        time.sleep(0.6 if number == 1 else 0.0)
        sampler.update(sampling["index"], np.ones(batch_size), step=sampling["step"])


def test_calls_that_hold_more_than_a_lag_allows_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"num_parallel_calls=16 needs a feedback_lag of at least 6, got 3: .*leave num"
    ):
        importance_dataset((X, Y), known(feedback_lag=3), B, map_fn=lambda *element: element, num_parallel_calls=16)


def test_calls_run_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=10.0)  # is passed by two calls at a time, or breaks

    def meet(y: np.ndarray) -> np.ndarray:
        together.wait()
        return y

    def change(x: tf.Tensor, y: tf.Tensor) -> Any:
        return x, tf.ensure_shape(tf.numpy_function(meet, [y], tf.int64), ())

    threads = tf.data.Options()
    threads.threading.private_threadpool_size = 2  # on a single core too
    train = importance_dataset((X[:20], Y[:20]), known(20), B, map_fn=change, num_parallel_calls=2)
    assert len(list(train.with_options(threads))) == 4  # 20 calls, an even number


def test_strings_and_rows_of_varying_length() -> None:
    words = tf.ragged.constant([[float(j) for j in range(i % 4)] for i in range(N)])
    text = np.array([f"{i} {i}" for i in range(N)], object)
    dataset = tf.data.Dataset.from_tensor_slices((words, text))

    def change(row: tf.Tensor, text: tf.Tensor) -> Any:
        return tf.reduce_sum(row), tf.strings.to_number(tf.strings.split(text)[0], tf.int64)

    for total, number, sampling in dataset.apply(importance_sampling(known(), B, map_fn=change)):
        np.testing.assert_array_equal(number, sampling["index"])
        np.testing.assert_array_equal(total, [sum(range(i % 4)) for i in sampling["index"].numpy()])


def test_an_error_in_it_is_heard() -> None:
    def fail(y: np.ndarray) -> np.ndarray:
        raise LookupError(f"no picture {y}")

    train = importance_dataset((X, Y), known(), B, map_fn=lambda x, y: (x, tf.numpy_function(fail, [y], tf.int64)))
    with pytest.raises(tf.errors.OpError, match="no picture"):
        next(iter(train))


def test_the_same_seed_gives_the_same_training() -> None:
    """Under a lag, whatever the calls in parallel do."""

    def train(calls: int | None) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        sampler = ImportanceSampler(N, seed=1, feedback_lag=3, feedback_timeout=20.0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(1e-5), "mse")
        data = importance_dataset(
            (X, Y.astype(np.float32)), sampler, B, map_fn=lambda x, y: (x + 1.0, y), num_parallel_calls=calls
        )
        model.fit(data, epochs=4, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)
        return [*model.get_weights(), sampler.priorities()]

    for one, other in zip(train(1), train(None), strict=True):
        np.testing.assert_array_equal(one, other)


def test_broken_off_and_begun_again_under_a_lag() -> None:
    """What was drawn and not fed back comes again, mapped."""
    sampler = ImportanceSampler(N, seed=0, feedback_lag=3)
    train = importance_dataset((X, Y), sampler, B, map_fn=lambda x, y: (x, 2 * y), num_parallel_calls=2)
    first = [next(iterator) for iterator in [iter(train)] for _ in range(2)]
    again = [next(iterator) for iterator in [iter(train)] for _ in range(2)]
    for (_, one, sampling), (_, other, handed) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(sampling["step"], handed["step"])
        np.testing.assert_array_equal(one, 2 * sampling["index"])
