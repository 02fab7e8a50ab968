"""The arguments of the samplers, checked in words."""

from __future__ import annotations

import inspect
import math
import time

import pytest

from sampler import ImportanceSampler, ProportionalStore, UniformSampler, gates, priorities, samplers
from sampler.quantiles import Window
from sampler.ranked import RankedStore
from sampler.stores import PriorityStore

# --- arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": -1}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 5.0}, TypeError, "num_samples must be an integer"),
        ({"num_samples": "5"}, TypeError, "num_samples must be an integer"),
        ({"priority": "lose"}, ValueError, "priority must be one of 'loss'"),
        ({"uniform_fraction": -0.1}, ValueError, r"uniform_fraction must be in \[0, 1\]"),
        ({"uniform_fraction": 1.1}, ValueError, r"uniform_fraction must be in \[0, 1\]"),
        ({"uniform_fraction": math.nan}, ValueError, "uniform_fraction must be in"),
        ({"uniform_fraction": "0.3"}, TypeError, "uniform_fraction must be a number"),
        ({"smoothing": 1.0}, ValueError, r"smoothing must be in \[0, 1\)"),
        ({"smoothing": -0.1}, ValueError, "smoothing must be in"),
        ({"scheme": "sytematic"}, ValueError, "scheme must be one of"),
        ({"scheme": ["systematic"]}, ValueError, r"scheme must be one of .*, got \['systematic'\]"),
        ({"store": "rank"}, ValueError, r"store must be one of .* such as ProportionalStore\(5\), got 'rank'$"),
        ({"store": None}, ValueError, "store must be .*, got None, which has no __len__"),
        ({"store": ["ranked"]}, ValueError, r"store must be .*, got \['ranked'\], which has no signed"),
        ({"store": ProportionalStore}, ValueError, "store must be .*, got <class .*ProportionalStore'>$"),
        ({"store": ProportionalStore(4)}, ValueError, "store must hold 5 samples, got one of 4"),
        ({"first_pass": "no"}, TypeError, "first_pass must be a number, got 'no'"),
        ({"first_pass": 1.5, "losses": [1.0] * 5}, ValueError, r"first_pass must be in \[0, 1\], got 1.5"),
        ({"keep_losses": 1}, TypeError, "keep_losses must be True or False, got 1"),
        ({"ascending": None}, TypeError, "ascending must be True or False, got None"),
        ({"beta": 1.5}, ValueError, r"beta must be in \[0, 1\]"),
        ({"beta": -1}, ValueError, "beta must be in"),
        ({"initial_priority": -1.0}, ValueError, "initial_priority must be in"),
        ({"initial_priority": -0.5}, ValueError, "initial_priority must be in"),
        ({"initial_priority": math.inf}, ValueError, "initial_priority must be in"),
        ({"losses": [1.0, 2.0]}, ValueError, "losses must have one number for each of 5 indices, got 2"),
        ({"losses": [1.0, 2.0, -1.0, 0.0, 0.0]}, ValueError, "needs losses ≥ 0, got -1.0"),
        ({"losses": 3.0}, ValueError, "losses must have one number for each"),
        ({"feedback_lag": 0}, ValueError, "feedback_lag must be at least 1, got 0"),
        ({"feedback_lag": 1.5}, TypeError, "feedback_lag must be an integer"),
        ({"feedback_timeout": -1}, ValueError, "feedback_timeout must be in"),
        ({"max_nonfinite_updates": 0}, ValueError, "max_nonfinite_updates must be at least 1"),
    ],
)  # fmt: skip
@pytest.mark.fault(10)
def test_arguments_out_of_range(options, error, words):
    with pytest.raises(error, match=words):
        ImportanceSampler(**{"num_samples": 5, **options})
    if options.keys() <= {"num_samples", "feedback_lag", "feedback_timeout", "max_nonfinite_updates"}:
        with pytest.raises(error, match=words):
            UniformSampler(**{"num_samples": 5, **options})


@pytest.mark.parametrize("seed", [-1, "x", 0.5, True])
def test_a_seed_that_is_none_is_refused_by_name(seed):
    with pytest.raises((TypeError, ValueError), match="seed must be"):
        ImportanceSampler(4, seed=seed)


COMMON = {"feedback_lag": None, "feedback_timeout": 60.0, "max_nonfinite_updates": 10, "seed": None}


@pytest.mark.parametrize(
    ("made", "defaults"),
    [
        (
            samplers.ImportanceSampler,
            {
                "priority": "loss",
                "uniform_fraction": 0.3,
                "smoothing": 0.0,
                "scheme": "systematic",
                "store": "proportional",
                "beta": 1.0,
                "first_pass": True,
                "warmup": 0,
                "finish_at": None,
                "gate": None,
                "initial_priority": 1.0,
                "losses": None,
                "keep_losses": False,
                "forget": 0.0,
                "max_draws": None,
                "ascending": False,
                **COMMON,
            },
        ),
        (samplers.UniformSampler, COMMON),
        (samplers.RankedSampler, {"alpha": 0.7, "beta": 1.0}),
        (samplers.ReducibleSampler, {"beta": 1.0}),
        (samplers.ClassBalancedSampler, {"beta": 0.999, "scheme": "systematic", "ascending": False, **COMMON}),
        (samplers.PruningSampler, {"prune": 0.5, "finish": 0.125, "epochs": None, "steps": None, **COMMON}),
        (samplers.SelectiveSampler, {"selectivity": 1.0, **COMMON}),
        (samplers.class_balanced_weights, {"beta": 0.999}),
        (gates.VarianceGate, {"window": 200, "confidence": 3.0, "margin": 0.05, "dwell": 100}),
        (gates.SpeedupGate, {"ratio": 1.0, "smoothing": 0.9}),
        (ProportionalStore, {"initial_priority": 1.0}),
        (RankedStore, {"alpha": 0.7, "initial_priority": 1.0}),
        (Window, {"size": 10_000}),
        (priorities.power, {"epsilon": 0.0}),
        (priorities.clipped, {"quantile": 0.95, "priority": "loss", "window": 10_000}),
    ],
)
def test_the_defaults_are_those_described(made, defaults):
    parameters = inspect.signature(made).parameters.items()
    assert {name: one.default for name, one in parameters if one.default is not one.empty} == defaults


@pytest.mark.parametrize("store", [PriorityStore, ProportionalStore, RankedStore])
def test_a_store_has_no_uniform_part_unless_told(store):
    methods = [method for name, method in vars(store).items() if name[0] != "_" and callable(method)]
    parameters = [inspect.signature(method).parameters for method in methods]
    shares = [named["uniform_fraction"].default for named in parameters if "uniform_fraction" in named]
    assert len(shares) >= 4
    assert set(shares) == {0.0}


@pytest.mark.parametrize(
    ("made", "uses_feedback", "fully_corrected", "epochs_vary"),
    [
        (samplers.UniformSampler(4), False, True, False),
        (samplers.ImportanceSampler(4), True, True, False),
        (samplers.ImportanceSampler(4, beta=0.5), True, False, False),
        (samplers.RankedSampler(4), True, True, False),
        (samplers.ReducibleSampler(4, reference=[0.0] * 4), True, True, False),
        (samplers.PruningSampler(4, epochs=3), True, True, True),
        (samplers.SelectiveSampler(4), True, False, True),
        (samplers.ClassBalancedSampler(4, labels=[0, 0, 1, 1]), False, False, False),
    ],
    ids=lambda made: type(made).__name__,
)
def test_what_a_sampler_says_of_itself(made, uses_feedback, fully_corrected, epochs_vary):
    assert (made.uses_feedback, made.fully_corrected, made.epochs_vary) == (uses_feedback, fully_corrected, epochs_vary)
    assert (made.auto, made.gated, made.wants_score) == (False, False, False)
    assert not epochs_vary or not made.ends_epoch(-1)


def test_the_seconds_are_no_more_than_went_by():
    start, sampler = time.perf_counter(), ImportanceSampler(8, seed=0)
    for step in range(4):
        sampler.update(sampler.draw(4).index, [1.0] * 4, step=step)
    assert 0.0 < sampler.seconds <= time.perf_counter() - start
