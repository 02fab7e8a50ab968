"""The generator: what its batches hold, how far ahead it draws, and that it can be left at any time."""

from __future__ import annotations

import logging
import math
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_dataset, importance_sampling, num_samples
from sampler import ImportanceSampler, UniformSampler

N, B = 10, 4
STEPS = math.ceil(N / B)
X = np.arange(N, dtype=np.float32)[:, None] * 10
Y = np.arange(N)
Python = Callable[..., subprocess.CompletedProcess[str]]


def dataset_of(sampler: Any, batch_size: int = B, **options: Any) -> tf.data.Dataset:
    return importance_dataset((X, Y), sampler, batch_size, **options)


def known(size: int = N, **options: Any) -> ImportanceSampler:
    """A sampler past its first pass, so that every draw is by priority."""
    return ImportanceSampler(size, losses=np.arange(1.0, size + 1), seed=0, **options)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "pipeline")


# --- elements -------------------------------------------------------------------------------------


SAMPLING = {
    "index": tf.TensorSpec((B,), tf.int64),
    "weight": tf.TensorSpec((B,), tf.float32),
    "probability": tf.TensorSpec((B,), tf.float32),
    "step": tf.TensorSpec((B,), tf.int64),
}
X_SPEC, Y_SPEC = tf.TensorSpec((B, 1), tf.float32), tf.TensorSpec((B,), tf.int64)
USER_WEIGHT = {**SAMPLING, "sample_weight": tf.TensorSpec((B,), tf.float64)}


@pytest.mark.parametrize("through", ["arrays", "dataset"])
@pytest.mark.parametrize(
    ("data", "spec"),
    [
        ((X, Y), (X_SPEC, Y_SPEC, SAMPLING)),
        (X, (X_SPEC, SAMPLING)),
        ((X,), (X_SPEC, SAMPLING)),
        ({"a": X, "b": Y}, ({"a": X_SPEC, "b": Y_SPEC}, SAMPLING)),
        (((X, Y), Y), ((X_SPEC, Y_SPEC), Y_SPEC, SAMPLING)),
        ((X, Y, Y / 10), (X_SPEC, Y_SPEC, USER_WEIGHT)),
    ],
    ids=["x, y", "x", "tuple of x", "dict", "two inputs", "sample weights"],
)
@pytest.mark.each_value
def test_structure(data: Any, spec: Any, through: str) -> None:
    sampler = ImportanceSampler(N, seed=0)
    if through == "arrays":
        wrapped = importance_dataset(data, sampler, B)
    else:
        wrapped = tf.data.Dataset.from_tensor_slices(data).apply(importance_sampling(sampler, batch_size=B))
    assert wrapped.element_spec == spec
    element = next(iter(wrapped))
    tf.nest.assert_same_structure(element, spec)
    index = element[-1]["index"].numpy()
    for got, array in zip(tf.nest.flatten(element[:-1]), tf.nest.flatten(data), strict=False):
        np.testing.assert_array_equal(got, array[index])
    if "sample_weight" in element[-1]:
        np.testing.assert_array_equal(element[-1]["sample_weight"], index / 10)


@pytest.mark.parametrize("known_length", [True, False])
def test_a_users_own_dataset(known_length: bool) -> None:
    """Mapped, nested, with text, ragged and sparse components: each still belongs to its index."""

    def element(x: tf.Tensor, y: tf.Tensor) -> Any:
        ragged = tf.RaggedTensor.from_row_lengths(tf.range(y), [y // 2, y - y // 2])
        inputs = {
            "text": tf.strings.as_string(y),
            "ragged": ragged,
            "sparse": tf.sparse.from_dense([y, 0, 1]),
        }
        return inputs, (x + 1.0, y)

    mine = tf.data.Dataset.from_tensor_slices((X, Y)).map(element, num_parallel_calls=2)
    if not known_length:
        mine = mine.filter(lambda *_: True)
    train = mine.apply(importance_sampling(ImportanceSampler(num_samples(mine), seed=0), batch_size=B))
    for inputs, (x, y), sampling in train.repeat(3):
        index = sampling["index"].numpy()
        np.testing.assert_array_equal(x, X[index] + 1)
        np.testing.assert_array_equal(y, index)
        assert [int(text) for text in inputs["text"].numpy()] == list(index)
        rows = [[list(range(i // 2)), list(range(i // 2, i))] for i in index]
        assert inputs["ragged"].to_list() == rows
        np.testing.assert_array_equal(tf.sparse.to_dense(inputs["sparse"]), [[i, 0, 1] for i in index])


@pytest.mark.parametrize(("size", "batch", "steps"), [(10, 4, 3), (8, 4, 2), (3, 5, 1), (1, 1, 1), (5, 1, 5)])
def test_an_epoch_is_a_pass_rounded_up(size: int, batch: int, steps: int) -> None:
    sampler = ImportanceSampler(size, seed=0)
    train = importance_dataset((X[:size], Y[:size]), sampler, batch)
    assert int(train.cardinality()) == steps
    assert [len(y) for _, y, _ in train] == [batch] * steps
    assert [len(y) for _, y, _ in train] == [batch] * steps


@pytest.mark.parametrize("size", [8, 10])
def test_the_first_epoch_covers_every_sample(size: int) -> None:
    train = importance_dataset((X[:size], Y[:size]), ImportanceSampler(size, seed=0), B)
    drawn = np.concatenate([y for _, y, _ in train])
    assert sorted(drawn[:size]) == list(range(size))


def test_batches_are_the_samplers_draws(recording: type[Any]) -> None:
    """Each by each, over epochs, while what comes back keeps changing the priorities."""
    sampler = recording(N, seed=0)
    batches = []
    for _ in range(4):
        for x, y, sampling in dataset_of(sampler):
            index = sampling["index"].numpy()
            np.testing.assert_array_equal(x, X[index])
            np.testing.assert_array_equal(y, index)
            sampler.update(index, (1.0 + index) ** 2, step=sampling["step"])
            batches.append({name: value.numpy() for name, value in sampling.items()})
    assert len(batches) == len(sampler.draws) == 4 * STEPS
    for step, (batch, draw) in enumerate(zip(batches, sampler.draws, strict=True)):
        assert draw.step == step
        np.testing.assert_array_equal(batch["index"], draw.index)
        np.testing.assert_array_equal(batch["weight"], draw.weight)
        np.testing.assert_array_equal(batch["probability"], draw.probability.astype(np.float32))
        np.testing.assert_array_equal(batch["step"], [step] * B)
    assert np.ptp([batch["weight"] for batch in batches]) > 0.5


def test_epochs_go_on_where_the_last_one_stopped() -> None:
    train, twin = dataset_of(known()), known()
    for _ in range(3):
        for _, y, sampling in train:
            draw = twin.draw(B)
            np.testing.assert_array_equal(y, draw.index)
            np.testing.assert_array_equal(sampling["step"], [draw.step] * B)


@pytest.mark.fault(30)
def test_weights_are_those_of_the_draw() -> None:
    """Drawn ahead, then the store is turned over: the weights that arrive are the old ones."""
    sampler, twin = known(), known()
    iterator = iter(dataset_of(sampler, prefetch=STEPS))
    next(iterator)
    assert wait_until(lambda: sampler.step == STEPS)
    sampler.update(Y, 1000.0 ** (Y % 2))
    twin.draw(B)
    drawn, (_, _, sampling) = twin.draw(B), next(iterator)
    np.testing.assert_array_equal(sampling["weight"], drawn.weight)
    np.testing.assert_allclose(sampling["weight"] * N * sampling["probability"], np.ones(B), rtol=1e-5)
    now = 1 / (N * sampler.probabilities()[drawn.index])
    assert np.abs(now - drawn.weight).max() > 0.1


def test_maps_on_the_result_see_batches() -> None:
    def double(x: tf.Tensor, y: tf.Tensor, sampling: dict[str, tf.Tensor]) -> Any:
        return 2 * x, y, sampling

    for x, y, sampling in dataset_of(ImportanceSampler(N, seed=0)).map(double, num_parallel_calls=2):
        np.testing.assert_array_equal(x, 2 * X[y])
        np.testing.assert_array_equal(y, sampling["index"])


def test_uniform_sampler() -> None:
    train = importance_dataset((X, Y), UniformSampler(N, seed=0), 5)
    for _ in range(2):
        batches = [(y.numpy(), sampling["weight"].numpy()) for _, y, sampling in train]
        assert sorted(np.concatenate([y for y, _ in batches])) == list(range(N))
        assert all((weight == 1.0).all() for _, weight in batches)


def test_inside_a_function() -> None:
    train = dataset_of(ImportanceSampler(N, seed=0))

    @tf.function
    def total() -> tf.Tensor:
        seen = tf.constant(0)
        for x, y, _ in train:
            tf.debugging.assert_equal(tf.cast(x[:, 0], tf.int64), 10 * y)
            seen += tf.size(y)
        return seen

    assert int(total()) == STEPS * B


# --- what it costs --------------------------------------------------------------------------------


class Counted:
    """A source that counts how often it is asked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        assert index == 0, "the first alone is asked for by itself, to see what elements are like"
        return X[0], Y[0]

    def __getitems__(self, index: list[int]) -> Any:
        self.batches.append(index)
        return [(X[i], Y[i]) for i in index]


def test_one_call_makes_a_whole_batch(recording: type[Any]) -> None:
    sampler, source = recording(N, seed=0), Counted()
    train = importance_dataset(source, sampler, B)
    source.batches.clear()
    epochs = [[y.numpy().tolist() for _, y, _ in train] for _ in range(2)]
    assert source.batches == [y for epoch in epochs for y in epoch]
    assert sampler.polls == 2 * STEPS


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("held", ["array", "tensor"])
@pytest.mark.parametrize(
    ("prefetch", "lag"), [(0, None), (1, None), (4, None), (9, None), (None, None), (0, 1), (1, 3), (None, 2), (8, 9)]
)
@pytest.mark.fault(28)
@pytest.mark.each_value
def test_draws_ahead_are_bounded(
    prefetch: int | None, lag: int | None, held: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset._cores", lambda: cores)
    ahead = prefetch if prefetch is not None else (2 if lag is None else lag - 1)
    sampler, steps = ImportanceSampler(80, seed=0, feedback_lag=lag), 20
    x = np.zeros(80) if held == "array" else tf.data.Dataset.from_tensor_slices(np.zeros(80))
    train = importance_dataset(x, sampler, 4, prefetch=prefetch)
    plan = train.feeder.plan
    assert ahead // 2 <= plan.ahead <= ahead
    most = 0
    for consumed, _ in enumerate(train, start=1):
        groups = -(-consumed // plan.grouped) + plan.buffered
        furthest = min(-(-groups * plan.grouped // plan.at_once) * plan.at_once, steps)
        assert wait_until(lambda: sampler.step >= furthest)  # noqa: B023
        if consumed < 3:
            time.sleep(0.02)  # one that is too many would be drawn now
        assert sampler.step == furthest <= consumed + plan.ahead
        most = max(most, sampler.step - consumed)
    assert most == plan.ahead


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [N - 1, N + 1])
def test_another_length_is_refused(size: int) -> None:
    sampler = ImportanceSampler(size)
    with pytest.raises(ValueError, match=f"has {N} elements, the sampler {size} samples; they must be equal"):
        dataset_of(sampler)
    with pytest.raises(ValueError, match=f"has {N} elements, the sampler {size} samples; they must be equal"):
        tf.data.Dataset.from_tensor_slices(X).apply(importance_sampling(sampler, batch_size=B))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (lambda data: data.batch(4), r"unbatch\(\)"),
        (lambda data: data.repeat(), "infinite"),
        (lambda data: data.shuffle(N), "shuffled before it is wrapped"),
    ],
)
def test_datasets_are_refused_when_they_are_wrapped(dataset: Callable[..., Any], words: str) -> None:
    data = dataset(tf.data.Dataset.from_tensor_slices((X, Y)))
    with pytest.raises(ValueError, match=words):
        data.apply(importance_sampling(ImportanceSampler(N), batch_size=B))


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("4", TypeError), (True, TypeError)],
)
def test_batch_sizes_are_checked(batch_size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch_size must be"):
        dataset_of(ImportanceSampler(N), batch_size)
    with pytest.raises(error, match="batch_size must be"):
        importance_sampling(ImportanceSampler(N), batch_size)


@pytest.mark.parametrize(("prefetch", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_prefetch_is_checked(prefetch: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="prefetch must be"):
        dataset_of(ImportanceSampler(N), prefetch=prefetch)


@pytest.mark.parametrize(("prefetch", "lag"), [(1, 1), (2, 2), (5, 4)])
def test_prefetch_beyond_the_lag_is_refused(prefetch: int, lag: int) -> None:
    words = f"prefetch={prefetch} needs a feedback_lag of at least {prefetch + 1}, got {lag}: .*lower prefetch or raise"
    with pytest.raises(ValueError, match=words):
        dataset_of(ImportanceSampler(N, feedback_lag=lag), prefetch=prefetch)


def test_elements_of_four_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x, \(x, y\) or \(x, y, sample_weight\), got a tuple of 4"):
        importance_dataset((X, Y, Y, Y), ImportanceSampler(N), B)


# --- a source that fails --------------------------------------------------------------------------


class Failing(Counted):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.armed = False

    def __getitems__(self, index: list[int]) -> Any:
        if self.armed and 7 in index:
            raise self.error
        return super().__getitems__(index)


@pytest.mark.parametrize("error", [OSError("no such page"), StopIteration("no such page"), KeyError("no such page")])
def test_a_source_that_raises_is_heard(error: Exception) -> None:
    """StopIteration too, which TensorFlow would take for the end of the data."""
    source = Failing(error)
    train = importance_dataset(source, ImportanceSampler(N, seed=0), B)
    source.armed = True
    with pytest.raises(tf.errors.OpError, match="no such page"):
        list(train)
    source.armed = False
    assert len(list(train)) == STEPS


# --- leaving in the middle ------------------------------------------------------------------------


def threads() -> int:
    """Of this process, TensorFlow's own included."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


@pytest.mark.parametrize("lag", [None, 3])
@pytest.mark.fault(32)
def test_breaking_off_again_and_again(lag: int | None) -> None:
    """With a lag and no feedback, the producer is blocked each time."""
    train = dataset_of(known(feedback_lag=lag), 1)
    before = 0
    for repeat in range(20):
        for count, _ in enumerate(train, start=1):
            if count == 3:
                break
        before = threads() if repeat == 10 else before
    assert threads() <= before + 2


def test_a_blocked_producer_is_left_at_once(recording: type[Any]) -> None:
    sampler = recording(N, losses=np.arange(1.0, N + 1), feedback_lag=2, seed=0)
    train = dataset_of(sampler, 2)
    iterator, before = iter(train), threads()
    first, _ = next(iterator)[1], next(iterator)
    polls = sampler.polls
    assert wait_until(lambda: sampler.polls > polls)  # the third draw waits for the first one's feedback
    begin = time.monotonic()
    del iterator
    assert wait_until(lambda: threads() <= before, 2.0)
    np.testing.assert_array_equal(next(iter(train))[1], first)
    assert time.monotonic() - begin < 4.0


@pytest.mark.fault(32)
def test_a_second_iteration() -> None:
    train = dataset_of(ImportanceSampler(N, seed=0))
    first, second = iter(train), iter(train)
    steps = [int(next(iterator)[-1]["step"][0]) for iterator in (first, second) * STEPS]
    assert sorted(steps) == list(range(2 * STEPS))
    for iterator in (first, second):
        with pytest.raises(StopIteration):
            next(iterator)


@pytest.mark.fault(32)
def test_two_iterators_at_once_are_independent() -> None:
    train = importance_dataset((X, Y), ImportanceSampler(N, seed=0), 1)
    for (x1, y1, one), (x2, y2, other) in tf.data.Dataset.zip((train, train)):
        np.testing.assert_array_equal(x1, X[y1])
        np.testing.assert_array_equal(x2, X[y2])
        assert one["index"] == y1
        assert other["index"] == y2
        assert one["step"] != other["step"]


@pytest.mark.fault(32)
def test_two_iterators_at_once_are_refused_under_a_lag() -> None:
    train = dataset_of(ImportanceSampler(N, seed=0, feedback_lag=4), prefetch=0)
    first = iter(train)
    next(first)
    next(iter(train))
    with pytest.raises(
        tf.errors.OpError, match=r"another iteration .* has begun.*finish one first, or use feedback_lag=None"
    ):
        next(first)


# --- no feedback ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["consumer", "map"])
@pytest.mark.fault(19)
def test_the_time_out_names_cause_and_remedy(where: str) -> None:
    train = dataset_of(known(feedback_lag=1, feedback_timeout=0.3))
    if where == "map":
        train = train.map(lambda *batch: batch, num_parallel_calls=2).prefetch(1)
    words = r"step 1 waited 0.3 s for the feedback of step 0.*LossFeedback\(model, sampler\).*raise feedback_lag"
    iterator, begin = iter(train), time.monotonic()
    next(iterator)
    with pytest.raises(tf.errors.OpError, match=words):
        next(iterator)
    assert 0.2 < time.monotonic() - begin < 5.0


class Listed:
    """Elements one by one."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index], f"nr {index}"


LATE: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (X, Y),
    "elements": Listed,
    "ragged": lambda: tf.data.Dataset.range(N).map(lambda i: (tf.range(i), i)),
    "sparse": lambda: tf.data.Dataset.range(N).map(lambda i: (tf.sparse.eye(3), i)),
    "strings": lambda: np.array([f"nr {i}" for i in range(N)]),
}


@pytest.mark.parametrize("source", LATE)
def test_feedback_that_comes_late_is_waited_for(source: str) -> None:
    """The third draw needs the losses of the first, which come while it has been asked for again and again."""
    sampler = known(feedback_lag=2, feedback_timeout=20.0)
    iterator = iter(importance_dataset(LATE[source](), sampler, B))
    taken = [next(iterator)[-1] for _ in range(2)]

    def report() -> None:
        for sampling in taken:
            sampler.update(sampling["index"], np.ones(B), step=sampling["step"])

    threading.Timer(0.2, report).start()
    assert np.unique(next(iterator)[-1]["step"]) == [2]


@pytest.mark.fault(37)
def test_partial_feedback_is_told_apart() -> None:
    sampler = known(feedback_lag=1, feedback_timeout=0.3)
    iterator = iter(dataset_of(sampler))
    _, y, sampling = next(iterator)
    sampler.update(y[:3], np.ones(3), step=sampling["step"][:3])
    with pytest.raises(tf.errors.OpError, match="3 of its 4 losses came back: was a part of the batch dropped"):
        next(iterator)


def consume(train: tf.data.Dataset, sampler: Any = None) -> None:
    for _, y, sampling in train:
        if sampler is not None:
            sampler.update(y, np.ones(B), step=sampling["step"])


@pytest.mark.fault(19)
def test_one_warning_after_a_whole_pass_without_feedback() -> None:
    train = dataset_of(ImportanceSampler(N, seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in train.take(STEPS - 1):
            pass
        assert caught == []
        for _ in range(3):
            consume(train)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "whole pass over the data brought no losses back" in str(caught[0].message)
    assert "LossFeedback(model, sampler)" in str(caught[0].message)


def test_the_warning_comes_with_the_first_whole_pass() -> None:
    train = dataset_of(ImportanceSampler(N, seed=0))
    with pytest.warns(RuntimeWarning, match="brought no losses back"):
        consume(train)


@pytest.mark.parametrize("lag", [None, 4])
def test_no_warning_where_losses_come_back(lag: int | None) -> None:
    sampler = ImportanceSampler(N, seed=0, feedback_lag=lag)
    train = dataset_of(sampler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            consume(train, sampler)
    assert caught == []


def test_no_warning_for_a_sampler_that_learns_nothing() -> None:
    train = dataset_of(UniformSampler(N, seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            consume(train)
    assert caught == []


def test_where_warnings_are_errors_the_iteration_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pipeline")
    train = dataset_of(ImportanceSampler(N, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(list(train)) for _ in range(3)] == [STEPS] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "brought no losses back" in caplog.text


def test_a_first_pass_under_a_lag_needs_no_feedback() -> None:
    train = importance_dataset((X, Y), ImportanceSampler(N, seed=0, feedback_lag=1), 5)
    assert len(list(train)) == 2


# --- processes of their own -----------------------------------------------------------------------


HALF_CONSUMED = """
    import time
    import numpy as np
    from pipeline import importance_dataset
    from sampler import ImportanceSampler

    plain = importance_dataset(np.zeros(64), ImportanceSampler(64, seed=0), 4)
    blocked = importance_dataset(
        np.zeros(64), ImportanceSampler(64, seed=0, feedback_lag=2, losses=np.ones(64)), 4
    )
    kept = [iter(plain), iter(blocked)]
    for iterator in kept:
        next(iterator), next(iterator)
    time.sleep(0.1)
    print("leaving")
"""


@pytest.mark.fault(32)
@pytest.mark.fault(33)
def test_a_process_ends_with_half_consumed_iterators(python: Python) -> None:
    ended = python(HALF_CONSUMED)
    assert (ended.returncode, ended.stdout) == (0, "leaving\n"), ended.stderr
