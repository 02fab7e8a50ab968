"""With a ``feedback_lag`` the same seed gives the same batches, bit for bit, whatever threads and interruptions do.

The oracle is always the sampler alone, in one thread: draw, update, draw, update.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from sampler import Draw, ImportanceSampler, UniformSampler

B = 4


class Batch(NamedTuple):
    """What a consumer gets."""

    step: int
    index: bytes
    weight: bytes
    probability: bytes


def received(sampling: dict[str, tf.Tensor]) -> Batch:
    index, weight, probability = (sampling[name].numpy() for name in ("index", "weight", "probability"))
    steps = np.unique(sampling["step"])
    assert steps.size == 1
    return Batch(int(steps[0]), index.tobytes(), weight.tobytes(), probability.tobytes())


def expected(draw: Draw) -> Batch:
    probability = draw.probability.astype(np.float32)
    return Batch(draw.step, draw.index.tobytes(), draw.weight.tobytes(), probability.tobytes())


def loss_of(index: np.ndarray, step: int) -> np.ndarray:
    """Losses that depend on the sample and on the state of training."""
    return ((1.0 + index % 7) * (1.0 + (index + step) % 3)).astype(np.float32)


def importance(size: int, lag: int, **options: Any) -> ImportanceSampler:
    return ImportanceSampler(size, feedback_lag=lag, feedback_timeout=20.0, **{"seed": 0, **options})


def oracle(sampler: Any, count: int) -> list[Batch]:
    batches = []
    for _ in range(count):
        draw = sampler.draw(B)
        sampler.update(draw.index, loss_of(draw.index, draw.step), step=draw.step)
        batches.append(expected(draw))
    return batches


def feed(sampler: Any, sampling: dict[str, tf.Tensor]) -> Batch:
    batch = received(sampling)
    sampler.update(sampling["index"], loss_of(sampling["index"].numpy(), batch.step), step=sampling["step"])
    return batch


def trained(train: tf.data.Dataset, sampler: Any, count: int, sleeps: Any = None) -> list[Batch]:
    """``count`` batches over as many epochs as it takes, each fed back, with random sleeps between."""
    batches: list[Batch] = []
    while len(batches) < count:
        for _, sampling in train:
            nap(sleeps)
            batches.append(feed(sampler, sampling))
            nap(sleeps)
            if len(batches) == count:
                break
    return batches


def nap(sleeps: Any) -> None:
    if sleeps is not None and sleeps.random() < 0.5:
        time.sleep(sleeps.exponential(0.003))


def data(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lag", "scheme"), [(1, "systematic"), (2, "multinomial"), (4, "systematic"), (9, "without_replacement")]
)
@pytest.mark.every(2)
def test_timing_changes_nothing(lag: int, scheme: str) -> None:
    sampler = importance(60, lag, scheme=scheme)
    got = trained(importance_dataset(data(60), sampler, B), sampler, 45, np.random.default_rng(lag))
    assert got == oracle(importance(60, lag, scheme=scheme), 45)


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.fault(30)
def test_prefetching_changes_nothing(prefetch: int) -> None:
    sampler = importance(30, 4)
    train = importance_dataset(data(30), sampler, B, prefetch=prefetch)
    assert trained(train, sampler, 24, np.random.default_rng(1)) == oracle(importance(30, 4), 24)


def test_transformations_after_it_change_nothing() -> None:
    sampler = importance(30, 4)
    train = importance_dataset(data(30), sampler, B).map(lambda *b: b, num_parallel_calls=4).prefetch(8)
    assert trained(train, sampler, 24, np.random.default_rng(2)) == oracle(importance(30, 4), 24)


def test_uniform_sampler() -> None:
    sampler = UniformSampler(30, feedback_lag=2, seed=0)
    got = trained(importance_dataset(data(30), sampler, B), sampler, 24, np.random.default_rng(3))
    assert got == oracle(UniformSampler(30, feedback_lag=2, seed=0), 24)


def test_other_seeds_and_lags_give_other_batches() -> None:
    """Lest all of this compares constants."""
    kinds = [importance(30, 2), importance(30, 2, seed=1), importance(30, 4)]
    weights = [{batch.weight for batch in oracle(sampler, 24)[10:]} for sampler in kinds]
    assert len(set.union(*weights)) > 14
    assert weights[0] != weights[1] != weights[2] != weights[0]


# --- breaking off ---------------------------------------------------------------------------------


def broken_off_at_random(train: tf.data.Dataset, sampler: Any, iterations: int, rng: Any, longest: int) -> list[Batch]:
    """What was fed back over many iterations, each left after a random number of batches.

    Some are left with a batch in hand that was never fed back.
    """
    fed: list[Batch] = []
    for _ in range(iterations):
        stop = int(rng.integers(0 if fed else 1, longest + 1))
        for count, (_, sampling) in enumerate(train):
            if count == stop:
                break
            fed.append(feed(sampler, sampling))
            nap(rng)
            if count + 1 == stop and rng.random() < 0.5:
                break
    return fed


@pytest.mark.parametrize(("epoch", "lag"), [(1, 1), (1, 4), (2, 2), (2, 4), (3, 4), (4, 1), (4, 3), (7, 2), (7, 4)])
@pytest.mark.each_value
def test_what_was_in_flight_is_handed_out_again(epoch: int, lag: int) -> None:
    sampler = importance(epoch * B - 1, lag)
    train = importance_dataset(data(epoch * B - 1), sampler, B)
    fed = broken_off_at_random(train, sampler, 10, np.random.default_rng(epoch * 10 + lag), epoch)
    assert fed == oracle(importance(epoch * B - 1, lag), len(fed))
    assert len(fed) > 3


@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.parametrize("in_hand", [False, True], ids=["fed back", "in hand"])
@pytest.mark.each_value
def test_broken_off_before_the_end_of_an_epoch(left: int, in_hand: bool) -> None:
    """``left`` batches before the last; the last one fed back, or still in the consumer's hands."""
    sampler, epoch = importance(24, 4), 6
    train = importance_dataset(data(24), sampler, B)
    fed: list[Batch] = []
    for _ in range(2):
        for count, (_, sampling) in enumerate(train, start=1):
            if count == epoch - left and in_hand:
                break
            fed.append(feed(sampler, sampling))
            time.sleep(0.01)  # let the producer run ahead as far as it may
            if count == epoch - left:
                break
    fed += trained(train, sampler, 8)
    assert fed == oracle(importance(24, 4), len(fed))


@pytest.mark.parametrize("prefetch", [None, 2], ids=["", "prefetched"])
@pytest.mark.parametrize(("epoch", "lag"), [(1, 4), (2, 4), (3, 2), (4, 4)])
@pytest.mark.each_value
def test_repeated_datasets_hand_nothing_out_twice(epoch: int, lag: int, prefetch: int | None) -> None:
    sampler = importance(epoch * B, lag)
    train = importance_dataset(data(epoch * B), sampler, B).repeat()
    if prefetch:
        train = train.prefetch(prefetch)
    assert trained(train, sampler, 12, np.random.default_rng(0)) == oracle(importance(epoch * B, lag), 12)


def test_repeated_datasets_may_be_left_too() -> None:
    sampler = importance(12, 3)
    train = importance_dataset(data(12), sampler, B).repeat()
    fed = broken_off_at_random(train, sampler, 10, np.random.default_rng(5), 8)
    assert fed == oracle(importance(12, 3), len(fed))


def test_a_new_dataset_over_the_same_sampler() -> None:
    sampler, fed = importance(24, 4), []
    for _ in range(4):
        train = importance_dataset(data(24), sampler, B)
        fed += trained(train, sampler, 4)
    assert fed == oracle(importance(24, 4), 16)


def test_half_a_batch_fed_back_is_handed_out_whole() -> None:
    sampler = importance(12, 2, losses=np.ones(12))
    train = importance_dataset(data(12), sampler, B)
    _, sampling = next(iter(train))
    sampler.update(sampling["index"][:2], [9.0, 9.0], step=sampling["step"][:2])
    assert trained(train, sampler, 10) == oracle(importance(12, 2, losses=np.ones(12)), 10)


# --- killed and resumed ---------------------------------------------------------------------------


def test_killed_at_every_step_and_resumed() -> None:
    """The state is taken while the producer is anywhere, before and after each batch is fed back."""
    size, lag = 16, 3  # an epoch is 4 batches
    wanted, rng = oracle(importance(size, lag), 14), np.random.default_rng(0)
    sampler, fed = importance(size, lag), 0
    states = [(0, sampler.state_dict())]
    while fed < 8:
        for _, sampling in importance_dataset(data(size), sampler, B):
            nap(rng)
            states.append((fed, sampler.state_dict()))
            assert feed(sampler, sampling) == wanted[fed]
            fed += 1
            states.append((fed, sampler.state_dict()))
    for fed, state in states:
        resumed = importance(size, lag, seed=99)
        resumed.load_state_dict(state)
        assert trained(importance_dataset(data(size), resumed, B), resumed, 6) == wanted[fed : fed + 6]


def test_resuming_within_one_sampler() -> None:
    """Loading an older state goes back to it, also while an iteration is open."""
    sampler = importance(20, 3)
    train = importance_dataset(data(20), sampler, B)
    first = trained(train, sampler, 8)
    state = sampler.state_dict()
    ahead = trained(train, sampler, 6)
    sampler.load_state_dict(state)
    assert trained(train, sampler, 6) == ahead
    assert first + ahead == oracle(importance(20, 3), 14)


# --- through Keras --------------------------------------------------------------------------------


@functools.cache
def fitted(epochs: tuple[int, ...], steps_per_execution: int = 1) -> list[np.ndarray]:
    """A model's weights after ``fit``, and what the sampler has learnt."""
    keras.utils.set_random_seed(7)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (x[:, :1] ** 2 - x[:, 1:2]).astype(np.float32)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=steps_per_execution)
    sampler = importance(40, 4)
    train = importance_dataset((x, y), sampler, B)
    for count in epochs:
        model.fit(train, epochs=count, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)])
    return [*model.get_weights(), sampler.priorities(), sampler.probabilities()]


@pytest.mark.parametrize(("epochs", "together"), [((1, 2), 1), ((3,), 4)], ids=["two fits", "four steps at once"])
def test_fit_gives_the_same_model(epochs: tuple[int, ...], together: int) -> None:
    for one, other in zip(fitted((3,)), fitted(epochs, together), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.ptp(fitted((3,))[-1]) > 0.01


def test_batches_drawn_ahead_do_not_leave_an_iteration_that_was_replaced():
    sampler = ImportanceSampler(50, seed=0, feedback_lag=3)
    dataset = importance_dataset(np.zeros(50, np.float32), sampler, 8)
    first, second = iter(dataset), iter(dataset)
    step = lambda element: int(element[1]["step"][0])  # noqa: E731
    assert step(next(first)) == 0
    assert step(next(second)) == 0  # what was in flight is handed out again, to the new one
    with pytest.raises(tf.errors.OpError, match="another iteration"):
        next(first)
    assert step(next(second)) == 1
