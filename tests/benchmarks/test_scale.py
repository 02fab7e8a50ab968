"""The scaling benchmark: draws from blocks against enumeration, the waiting line, the fit, the tables. About ten s.

No Ray here: the store's shards run in this process. What Ray adds is tested in ``tests/ray``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import drawing, scale, scale_local, scale_report, scale_simulation, scale_store
from benchmarks.drawing import Row
from benchmarks.scale import Options
from benchmarks.scale_simulation import Assumptions, Line, Traffic, Units, Verb
from benchmarks.scale_store import Plan
from sampler import ImportanceSampler, ShardedSampler
from sampler.shard_plan import ShardPlan
from tests.sampler.shards_in_process import InProcess

UNITS = Units(
    client_draw=Verb(50.0, 200.0, 0.1),
    client_update=Verb(30.0, 300.0, 0.0),
    shard_draw=Verb(0.0, 400.0, 0.3),
    shard_update=Verb(0.0, 250.0, 0.2),
    trip=Line(800.0, 100.0),
    memory=Line(2e8, 10.0),
    restart=Line(2.0, 3e-8),
    one_memory=Line(1e6, 6.0),
    one_write=Line(0.01, 3e-8),
    one_load=Line(0.01, 2e-8),
    sizes=(1e4, 1e6, 1e8),
    step=(60.0, 100.0, 200.0),
)
ARRANGEMENTS = pytest.mark.parametrize("arrangement", scale_local.ARRANGEMENTS)

# --- draws from blocks ------------------------------------------------------------------------


@ARRANGEMENTS
@pytest.mark.parametrize("workers", [2, 7, 40])
def test_without_a_uniform_share_the_second_moment_grows_by_the_spread_of_the_totals(arrangement, workers) -> None:
    data = scale_local.made(arrangement, num_samples=500, sigma=1.0, seed=1)
    one, local = (scale_local.exact(data, workers=count, uniform_fraction=0.0) for count in (1, workers))
    assert one.second == pytest.approx(data.norms.mean() ** 2)
    assert local.second / one.second == pytest.approx(1.0 + local.spread)


@ARRANGEMENTS
def test_the_enumeration_is_that_of_the_slow_twin(arrangement) -> None:
    size, workers, uniform = 60, 7, 0.3
    data = scale_local.made(arrangement, num_samples=size, sigma=1.5, seed=2)
    second = variance = 0.0
    for rank in range(workers):
        block = range(rank * size // workers, (rank + 1) * size // workers)
        total = sum(data.norms[i] for i in block)
        mean, own = np.zeros(scale_local.DIMENSIONS), 0.0
        for i in block:
            p = (1 - uniform) * data.norms[i] / total + uniform / len(block)
            own += p * (workers / (size * p) * data.norms[i]) ** 2
            mean += workers / size * data.gradients[i]
        second += own / workers
        variance += (own - mean @ mean) / workers
    found = scale_local.exact(data, workers=workers, uniform_fraction=uniform)
    assert found.second == pytest.approx(second)
    assert found.one_draw == pytest.approx(variance)


def test_blocks_dealt_at_random_have_no_greater_variance_on_average() -> None:
    data = scale_local.made("sorted", num_samples=400, sigma=1.0, seed=3)
    one = scale_local.exact(data, workers=1, uniform_fraction=0.0)
    generator, ratios = np.random.default_rng(0), []
    for _ in range(400):
        order = generator.permutation(400)
        dealt = scale_local.Data(data.norms[order], data.gradients[order])
        ratios.append(scale_local.exact(dealt, workers=20, uniform_fraction=0.0).one_draw / one.one_draw)
    # By the docstring: both are (N-n)/(n(N-1)) of what they are for n = 1, so the mean is known.
    norms, gradients = data.norms, data.gradients
    gain = (np.mean(norms) ** 2 - np.sum(gradients.mean(axis=0) ** 2)) / one.one_draw
    expected = 1.0 - (400 - 20) / (20 * 399) * gain
    error = np.std(ratios, ddof=1) / 20.0
    assert abs(np.mean(ratios) - expected) < 4.0 * error  # a false alarm in 16,000 seeds
    assert expected < 1.0
    # And class by class it is greater: equal allocation over blocks of unequal totals.
    assert scale_local.exact(data, workers=20, uniform_fraction=0.0).one_draw > 1.3 * one.one_draw


@pytest.mark.parametrize("arrangement", ["shuffled", "sorted"])
def test_draws_are_as_enumerated(arrangement) -> None:
    data = scale_local.made(arrangement, num_samples=600, sigma=1.0, seed=4)
    options: dict[str, Any] = {"workers": 3, "uniform_fraction": 0.3}
    local, one = (scale_local.exact(data, **options | {"workers": count}) for count in (3, 1))
    found = scale_local.drawn(data, **options, scheme="multinomial", batch=16, steps=800, seed=0)
    for name, exact, other in (("second", local.second, one.second), ("one_draw", local.one_draw, one.one_draw)):
        mean, error = found[name]
        assert abs(mean - exact) < 4.0 * error  # a false alarm in 16,000 seeds
        if arrangement == "sorted":
            assert abs(mean - other) > 4.0 * error  # the formula of one store is told apart


# --- the waiting line -------------------------------------------------------------------------


def test_a_waiting_line_is_served_one_at_a_time_in_order() -> None:
    generator = np.random.default_rng(0)
    arrival, service = generator.exponential(10.0, 300), generator.exponential(1.0, 300)
    free, took = 0.0, np.empty(300)
    for call in np.argsort(arrival, kind="stable"):
        free = max(free, arrival[call]) + service[call]
        took[call] = free - arrival[call]
    np.testing.assert_allclose(scale_simulation.waiting_line(arrival, service), took)


@pytest.mark.parametrize(("shards", "batch", "prefetch"), [(1, 8, 0), (4, 256, 16), (8, 256, 4), (64, 16, 8)])
def test_calls_are_those_that_the_plan_makes(shards, batch, prefetch) -> None:
    plan = ShardPlan(6400, shards, uniform_fraction=1.0, passes=0, generator=np.random.default_rng(0))
    sent = scale_simulation.traffic(shards, batch, prefetch)
    told = [np.count_nonzero(part.counts) for _ in range(400) for part in plan.order(batch)]
    asked = [
        np.count_nonzero(sum(part.counts for _ in range(sent.batches) for part in plan.order(batch)))
        for _ in range(400)
    ]
    assert sent.batches == max(1, prefetch // 2)
    assert np.mean(told) == pytest.approx(sent.told, rel=0.01)
    assert np.mean(asked) == pytest.approx(sent.asked, rel=0.03)


def test_a_store_that_has_little_to_do_costs_a_step_what_the_client_computes() -> None:
    line = scale_simulation.queue(UNITS, shards=4, workers=1, batch=256, prefetch=16, step_s=0.1)
    sent = scale_simulation.traffic(4, 256, 16)
    assert line.period_s == pytest.approx(0.1 + 1e-6 * scale_simulation.costs(UNITS, sent, 256).client)
    assert line.waited_s == 0.0
    assert line.busy < 0.05


def test_without_draws_ahead_every_step_waits_for_the_answer() -> None:
    line = scale_simulation.queue(UNITS, shards=4, workers=1, batch=256, prefetch=0, step_s=0.1)
    answer = 1e-6 * (UNITS.trip.at(4) + UNITS.shard_draw.of(1, 64, 0))
    assert line.waited_s == pytest.approx(answer)


def test_a_store_that_does_not_keep_up_sets_the_pace() -> None:
    line = scale_simulation.queue(UNITS, shards=2, workers=2000, batch=256, prefetch=16, step_s=0.1, jitter_s=1e-3)
    sent = scale_simulation.traffic(2, 256, 16)
    assert line.period_s == pytest.approx(2000 * 1e-6 * scale_simulation.costs(UNITS, sent, 256).shards / 2)
    assert line.busy == 1.0
    wider = scale_simulation.queue(UNITS, shards=8, workers=2000, batch=256, prefetch=16, step_s=0.1, jitter_s=1e-3)
    assert wider.period_s < line.period_s


def test_bursts_longer_than_what_is_ahead_are_waited_for() -> None:
    sent = Traffic(1, 1.0, 1.0)
    rng = np.random.default_rng(0)
    last = scale_simulation.burst_waits(sent, 1, 100, 1e-3, 0.0, 1.0, 0.0, rng)
    np.testing.assert_allclose(last, 0.1)  # the hundredth of a burst waits for all


# --- failures ---------------------------------------------------------------------------------


def test_the_time_that_failures_take_is_that_of_a_simulation() -> None:
    rate, save, restart = 1 / 2000.0, 5.0, 60.0
    part, interval = scale_simulation.useful(rate, save, restart)
    assert interval == pytest.approx(np.sqrt(2 * save / rate), rel=0.15)  # Young's, to first order
    generator, clock, pieces = np.random.default_rng(0), 0.0, 20_000
    for _ in range(pieces):
        while (lived := generator.exponential(1 / rate)) < interval + save:
            clock += lived + restart
        clock += interval + save
    assert pieces * interval / clock == pytest.approx(part, rel=0.01)  # standard error 0.1 %
    assert scale_simulation.useful(1e-12, save, restart)[0] > 0.9999


# --- fitting ----------------------------------------------------------------------------------


def rows_of(units: Units) -> list[Row]:
    """Rows that were measured where everything costs exactly that."""
    rows: list[Row] = []
    for shards in (1, 2, 4, 8):
        for batch in (256, 4096):
            for prefetch in (0, 4, 16):
                sent = scale_simulation.traffic(shards, batch, prefetch)
                asked, told = sent.asked / sent.batches, sent.told
                said = scale_simulation.queue(
                    units, shards=shards, workers=1, batch=batch, prefetch=prefetch, step_s=0.0, cores=2
                )
                rows.append(
                    {
                        **{"kind": "store", "shards": shards, "num_samples": 10**8, "batch_size": batch},
                        **{"prefetch": prefetch, "draw_calls": asked, "update_calls": told, "rounds": 5},
                        "draw_client_cpu_us": units.client_draw.of(asked, batch),
                        "update_client_cpu_us": units.client_update.of(told, batch),
                        "draw_shards_cpu_us": units.shard_draw.of(asked, batch, 0.0),
                        "update_shards_cpu_us": units.shard_update.of(told, batch, 0.0),
                        **{"draw_us": 0.5e6 * said.period_s, "update_us": 0.5e6 * said.period_s},
                        **{"draw_quartiles_us": [1.0, 9.0], "update_quartiles_us": [1.0, 9.0]},
                        **{"draws_per_second": 10, "updates_per_second": 9, "step_over_one": 30.0},
                        **{"one_draws_per_second": 100, "one_updates_per_second": 90},
                        "machine": {"cores": 2},
                    }
                )
    for shards, samples in ((1, 10**6), (1, 10**8), (8, 10**8 // 8)):
        rows.append(
            {
                **{"kind": "shard", "shards": shards, "num_samples": shards * samples, "shard_samples": samples},
                "resident_bytes": [units.memory.at(samples)] * shards,
                "restart_s": [units.restart.at(samples)],
                "round_trip_us": units.trip.at(shards),
                **{"round_trip_quartiles_us": [1.0, 2.0], "build_s": 1.0, "fill_s": 1.0, "snapshot_s": [1.0]},
            }
        )
        rows.append({**rows[-1], "shards": shards + 1, "round_trip_us": units.trip.at(shards + 1)})
    for size, step in zip(units.sizes, units.step, strict=True):
        rows.append(
            {
                **{"kind": "one", "num_samples": int(size), "batch_size": 256},
                **{"draw_us": step / 2, "update_us": step / 2, "resident_bytes": units.one_memory.at(size)},
                **{"snapshot_s": units.one_write.at(size), "load_s": units.one_load.at(size)},
            }
        )
    where = {"num_samples": 10**8, "batch_size": 256}
    for shards in (1, 2):
        for step_ms in (5.0, 20.0):
            row = {"kind": "step", **where, "shards": shards, "prefetch": 4, "step_ms": step_ms}
            rows.append({**row, "lost_ms": 2.0, "waited_ms": 1.0})
        row = {"kind": "clients", **where, "shards": shards, "prefetch": 16, "clients": 1}
        rows.append({**row, "steps_per_second": 300.0, "quartiles": [299.0, 301.0]})
    return rows


def flat(units: Units) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in units])


def test_unit_costs_are_found_again() -> None:
    np.testing.assert_allclose(flat(Units.of(rows_of(UNITS))), flat(UNITS), rtol=1e-6, atol=1e-6)


def test_no_cost_is_negative() -> None:
    assert scale_simulation.line([(1.0, 5.0), (100.0, 1.0)]).each == 0.0


def test_without_cpu_times_there_is_no_simulation() -> None:
    rows = [{**row, "draw_shards_cpu_us": None} if row["kind"] == "store" else row for row in rows_of(UNITS)]
    with pytest.raises(ValueError, match="CPU times"):
        Units.of(rows)
    (row,) = scale.computed(rows, Options())
    assert "CPU times" in row["skipped"]
    assert "CPU times" in scale_report.report([row])


def test_what_is_simulated_by_its_own_costs_agrees_with_itself() -> None:
    found = scale_simulation.checks(rows_of(UNITS), cores=2)
    flows = [row["ratio"] for row in found if row["what"] == "flow"]
    assert len(flows) == 16
    np.testing.assert_allclose(flows, 1.0, rtol=1e-6)


# --- layouts ----------------------------------------------------------------------------------


def test_a_layout_wins_where_it_fits() -> None:
    assume = Assumptions()

    def best(size: int, workers: int) -> str | None:
        rows = scale_simulation.simulation(UNITS, assume, [size], [workers])
        return scale_simulation.winner(rows)

    assert best(10**8, 1) == "one"
    assert best(10**11, 1) == "shards"  # 600 GB are more than a machine has
    assert best(10**11, 1000) == "local"
    alone = scale_simulation.simulated("one", 10**8, 2, UNITS, assume)
    assert not alone["fits"]
    assert "several" in alone["why"]


def test_no_more_than_memory_and_failures_change_with_the_samples() -> None:
    small, large = (scale_simulation.simulated("local", size, 100, UNITS, Assumptions()) for size in (10**8, 10**11))
    assert large["gb_a_shard"] > 100 * small["gb_a_shard"]
    assert large["useful"] < small["useful"]
    assert small["calls_a_step"] == large["calls_a_step"] == 0.0


def test_the_more_often_processes_die_the_less_gets_done() -> None:
    parts = [
        scale_simulation.simulated(layout, 10**9, 100, UNITS, Assumptions(mtbf_days=days))["part"]
        for layout in ("local", "shards")
        for days in (1.0, 30.0, 3000.0)
    ]
    assert parts[0] < parts[1] < parts[2]
    assert parts[3] < parts[4] < parts[5]


# --- the store, with shards in this process ---------------------------------------------------


def test_a_store_is_measured(monkeypatch) -> None:
    plan = Plan(2_000, 2, batches=(16,), prefetches=(0, 4), step_ms=(0.1,), rounds=2, seconds=0.001)
    store = scale_store.filled(ShardedSampler(2_000, shards=2, first_pass=False, calls=InProcess()), shards=2, seed=0)
    assert (store.priorities() != 1.0).all()  # every sample is known
    one = scale_store.filled(ImportanceSampler(2_000, first_pass=False, seed=0), shards=1, seed=0)
    assert (one.priorities() != 1.0).all()
    rows = list(scale_store.flow_rows(plan, store, one, store.processes()))
    assert [row["prefetch"] for row in rows] == [0, 4]
    assert rows[0]["draw_calls"] == pytest.approx(2.0)  # every draw asks both
    assert 0.9 < rows[1]["draw_calls"] <= 1.2  # of two batches at a time
    assert all(row["update_calls"] == pytest.approx(2.0) for row in rows)
    assert all(row["draws_per_second"] == round(16e6 / row["draw_us"]) for row in rows)
    assert sorted(set(scale_store.Usage(4, 8, 40.0, 20.0).columns("draw", True).values())) == [2.0, 5.0, 10.0]
    steps = list(scale_store.step_rows(plan, store))
    assert [row["calls"] for row in steps] == [pytest.approx(4.0), pytest.approx(3.0, abs=0.25)]
    assert all(row["lost_ms"] > 0.0 for row in steps)


def test_a_sampler_of_this_process_is_measured(tmp_path) -> None:
    row, one = scale_store.one_row(1_000, 16, tmp_path, Plan(1_000, rounds=2, seconds=0.001))
    assert len(one) == row["num_samples"] == 1_000
    assert row["draw_us"] > 0.0
    assert row["load_s"] > 0.0
    assert list(tmp_path.glob("*.safetensors"))


# --- options, tables, picture -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shards": ()}, "shards must be whole numbers of at least 1"),
        ({"batches": (0,)}, "batches must be whole numbers"),
        ({"prefetches": (-1,)}, "prefetches must be"),
        ({"step_ms": (0.0,)}, "step_ms must be numbers above 0"),
        ({"rounds": 0}, "rounds and kills must be at least 1"),
        ({"seconds": float("nan")}, "seconds above 0"),
        ({"num_samples": 4}, "a sample for each of 8 shards"),
        ({"simulated_sizes": (100,)}, "simulated_workers must not be more than the samples"),
        ({"report": True, "output": Path("not/there.jsonl")}, "is not there: measure first"),
    ],
)
def test_options_are_refused(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        Options(**given)


@pytest.mark.parametrize("given", [{"mtbf_days": 0.0}, {"network_us": -1.0}, {"batch": 0}, {"shards": 0}])
def test_assumptions_are_refused(given) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Assumptions(**given)


def test_options_are_refused_before_anything_is_measured(capsys, monkeypatch) -> None:
    monkeypatch.setattr(scale, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        scale.main(["--rounds", "0"])
    assert "rounds" in capsys.readouterr().err


def test_a_quick_run_leaves_the_results_alone() -> None:
    quick = Options(quick=True).shortened()
    assert quick.output == Path("benchmarks/results/scale-quick.jsonl")
    assert (quick.num_samples, quick.shards) == (1_000_000, (1, 2))
    assert Options(quick=True, output=Path("mine.jsonl")).shortened().output == Path("mine.jsonl")


@functools.cache
def moments() -> list[Row]:
    return [
        row
        for arrangement in scale_local.ARRANGEMENTS
        for row in scale_local.moment_rows(
            arrangement=arrangement,
            num_samples=200,
            workers=(2, 10),
            sigmas=(1.0, 2.0),
            uniform_fractions=(0.0, 0.3),
            most_calls=50,
            seed=0,
        )
    ]


def test_by_draws_where_the_calls_suffice() -> None:
    assert {row["workers"] for row in moments() if "draw_steps" in row} == {2}
    assert {row["sigma"] for row in moments() if "draw_steps" in row} == {1.0}


def test_the_results_are_written_told_and_drawn_again(tmp_path, capsys, monkeypatch) -> None:
    measured = [{**row, "machine": {"cores": 2}} for row in [*rows_of(UNITS), *moments()]]
    monkeypatch.setattr(scale, "measure", lambda options, say: measured)
    monkeypatch.setattr(drawing, "DPI", 30)  # quick
    output = tmp_path / "mine.jsonl"
    small = ["--output", str(output), "--simulated-workers", "1", "100", "--simulated-sizes", "1000000", "100000000000"]
    assert scale.main(small) == 0
    said = capsys.readouterr().out
    for title in ("against shards", "its death", "from one store", "unit costs", "beside measured", "which layout"):
        assert title in said
    assert "one process, 99" in said
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    kinds = [json.loads(line)["kind"] for line in output.read_text().splitlines()]
    assert {"store", "moment", "units", "assumptions", "simulated", "check"} <= set(kinds)

    monkeypatch.setattr(scale, "measure", lambda *_: pytest.fail("measured"))
    assert scale.main([*small, "--report"]) == 0
    assert capsys.readouterr().out == said

    before = output.read_bytes()
    assert scale.main([*small[:2], "--simulated-sizes", "100000000", "--report", "--assume.mtbf-days", "0.01"]) == 0
    assert "mtbf_days 0.01" in capsys.readouterr().out
    assert output.read_bytes() == before  # under other assumptions nothing is written
