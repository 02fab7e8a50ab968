"""One shard, without Ray: its draws and their p, updates that come twice or late, and what a restart brings back."""

from __future__ import annotations

import logging
import os
import threading

import numpy as np
import pytest

from sampler import shard_folder
from sampler.shard_options import Made, checksum, made_alike
from sampler.shard_plan import ShardPlan
from sampler.shard_server import Order, ShardServer
from sampler.snapshots import newest_snapshot, write_snapshot
from sampler.state_bytes import NewerFormatError

from .states import same

N, SHARDS, SHARD = 50, 4, 1  # the block 12..24, of 13
SIZE = 13
LOSSES = np.random.default_rng(0).gamma(1.0, size=SIZE)
EVERYTHING = np.arange(SIZE)


def made(**options):
    return Made(N, SHARD, SHARDS, **options)


def steps(step, count=SIZE):
    return np.full(count, step)


def taught(**options):
    server = ShardServer(made(**options))
    server.update(EVERYTHING, LOSSES, steps(3))
    return server


def test_the_first_pass_is_every_sample_once_and_then_draws_are_by_priority():
    server = taught()
    drawn = server.draw([Order(8, 0.5, passes=True), Order(9, 0.5, passes=True)], step=0)
    assert sorted(drawn.index[:SIZE]) == EVERYTHING.tolist()
    np.testing.assert_array_equal(drawn.probability[:SIZE], 1 / SIZE)
    assert drawn.status.done == SIZE
    p = 0.5 * LOSSES / LOSSES.sum() + 0.5 / SIZE
    np.testing.assert_allclose(drawn.probability[SIZE:], p[drawn.index[SIZE:]], rtol=1e-6)


def test_further_passes_come_before_priorities():
    server = taught(warmup=2)
    drawn = server.draw([Order(3 * SIZE + 1, 0.5, passes=True)], step=0)
    for number in range(3):
        assert sorted(drawn.index[number * SIZE : (number + 1) * SIZE]) == EVERYTHING.tolist()
    assert drawn.status.done == 3 * SIZE


def test_draws_by_priority_leave_the_pass_where_it_is():
    server = taught()
    first = server.draw([Order(5, 0.5, passes=True)], step=0)
    server.draw([Order(20, 0.5)], step=1)
    second = server.draw([Order(8, 0.5, passes=True)], step=2)
    assert sorted([*first.index, *second.index]) == EVERYTHING.tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.4, 1.0])
def test_p_is_what_the_order_says(fraction):
    server = taught()
    p = (1 - fraction) * LOSSES / LOSSES.sum() + fraction / SIZE
    drawn = server.draw([Order(7, fraction), Order(300, fraction)], step=0)
    np.testing.assert_allclose(drawn.probability, p[drawn.index], rtol=1e-6)
    counts = np.bincount(drawn.index[7:], minlength=SIZE)
    assert (np.abs(counts - 300 * p) < 1 + 1e-4).all()  # systematic
    assert drawn.status.total == pytest.approx(LOSSES.sum(), rel=1e-6)


def test_all_zero_is_uniform(caplog):
    server = ShardServer(made())
    server.update(EVERYTHING, np.zeros(SIZE), steps(0))
    drawn = server.draw([Order(10, 0.1)], step=0)
    np.testing.assert_allclose(drawn.probability, 1 / SIZE)
    assert drawn.status.total == 0.0
    assert "all priorities are zero" in caplog.text


def test_a_shard_of_zeros_is_drawn_by_the_uniform_share_alone():
    """P of the plan by the totals that the shards tell, where one of four tells of nothing but zeros."""
    plan = ShardPlan(4 * SIZE, 4, uniform_fraction=0.3, generator=np.random.default_rng(0))
    server = ShardServer(made())
    plan.total[:] = 2.0, server.update(EVERYTHING, np.zeros(SIZE), steps(0)).total, 3.0, 5.0
    np.testing.assert_allclose(plan.chance(), [0.215, 0.075, 0.285, 0.425])


def test_known_losses_come_too_late_for_a_shard_that_has_learnt_since():
    """It had died, and kept nothing; the next who joins gives them again."""
    server = ShardServer(made(known=checksum(LOSSES)), again=True)
    server.update(EVERYTHING, 2.0 * LOSSES, steps(7))
    before = server.priorities()
    server.begin(LOSSES)
    np.testing.assert_array_equal(server.priorities(), before)


def test_what_was_loaded_is_in_a_snapshot_at_once(tmp_path):
    server = ShardServer(made(), folder=tmp_path, every=1e6)
    server.load_state_dict(taught().state_dict())
    again = ShardServer(made(), folder=tmp_path, every=1e6, again=True)
    np.testing.assert_array_equal(again.priorities(), server.priorities())


# --- updates


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.5}, {"priority": "clipped"}])
def test_an_update_that_comes_twice_changes_nothing(options):
    server = taught(**options)
    update = np.array([3, 4, 4]), np.array([5.0, 1.0, 2.0]), np.array([7, 7, 8])
    server.update(*update)
    before = server.state_dict()
    status = server.update(*update)
    after = server.state_dict()
    assert status.late == 3
    for state in (before, after):
        del state["counts"]
    assert same(before, after)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0, 1, 2]])
def test_the_newest_wins_in_whatever_order(order):
    sent = [(np.array([0, 1]), np.array([1.0, 2.0]), 5), (np.array([1, 2]), np.array([3.0, 4.0]), 6)]
    sent.append((np.array([0]), np.array([7.0]), 9))
    server = ShardServer(made())
    for place in order:
        index, values, step = sent[place]
        server.update(index, values, steps(step, index.size))
    np.testing.assert_allclose(server.priorities()[:3], [7.0, 3.0, 4.0])
    assert server.known()[:4].tolist() == [9, 6, 6, -1]


def test_scores_take_the_place_of_losses():
    server = ShardServer(made(priority="gradient_norm"))
    server.update(np.array([2]), np.array([0.25]), steps(0, 1))
    assert server.priorities()[2] == 0.25


def test_the_stalest_are_those_whose_step_is_the_oldest():
    server = ShardServer(made())
    server.update(EVERYTHING[1:], LOSSES[1:], EVERYTHING[1:][::-1].copy())
    index, known = server.stalest(3)
    assert (index.tolist(), known.tolist()) == ([0, 12, 11], [-1, 1, 2])


# --- snapshots and restarts


def test_a_restart_goes_on_from_the_newest_snapshot_and_says_what_is_lost(tmp_path):
    server = ShardServer(made(), folder=tmp_path, every=1e6)
    server.update(EVERYTHING, LOSSES, steps(3))
    server.draw([Order(5, 0.5, passes=True)], step=9)
    assert server.snapshot()
    assert not server.snapshot()  # nothing has changed
    server.update(np.array([0]), np.array([99.0]), steps(8, 1))
    again = ShardServer(made(), folder=tmp_path, every=1e6)
    np.testing.assert_allclose(again.priorities(), LOSSES, rtol=1e-6)
    status, before = again.status(), server.status()
    assert (before.received, status.received, status.loaded) == (2, 1, 1)
    assert status.life != before.life
    assert (status.done, status.step, status.newest, status.seen) == (5, 9, 3, SIZE)


def test_the_random_numbers_of_a_restart_are_others(tmp_path):
    def options():
        return made(first_pass=False, scheme="multinomial")

    server = ShardServer(options(), folder=tmp_path, every=1e6)
    server.update(EVERYTHING, LOSSES, steps(3))
    server.snapshot()
    draws = [server.draw([Order(64, 0.5)], 0).index.tolist() for _ in range(2)]
    for folder in (tmp_path, None):
        again = ShardServer(options(), folder=folder, every=1e6, again=True)
        again.update(EVERYTHING, LOSSES, steps(3))
        assert again.draw([Order(64, 0.5)], 0).index.tolist() not in draws  # but for a chance below 1e-40
    alike = ShardServer(options())
    alike.update(EVERYTHING, LOSSES, steps(3))
    assert alike.draw([Order(64, 0.5)], 0).index.tolist() == draws[0]  # while a shard that is new has its seed's


@pytest.mark.fault(20)
def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog):
    server = ShardServer(made(), folder=tmp_path, every=1e6)
    for step in range(1, 4):
        server.update(EVERYTHING, LOSSES * step, steps(step))
        server.snapshot()
    first, last = sorted(tmp_path.iterdir())  # two are kept
    last.write_bytes(last.read_bytes()[:-3] + b"abc")
    again = ShardServer(made(), folder=tmp_path, every=1e6)
    np.testing.assert_allclose(again.priorities(), LOSSES * 2, rtol=1e-6)
    assert f"the snapshot {last} is passed over" in caplog.text
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the snapshots in .* is whole; remove them"):
        ShardServer(made(), folder=tmp_path, every=1e6)


@pytest.mark.fault(21)
def test_a_newer_snapshot_is_no_reason_to_take_an_older_one(tmp_path, monkeypatch):
    write_snapshot(tmp_path, {"a": 1})
    for name in ("sampler.snapshots.FORMAT", "sampler.state_bytes.FORMAT"):
        with monkeypatch.context() as patch:
            patch.setattr(name, 9)
            write_snapshot(tmp_path, {"a": 2})
        with pytest.raises(NewerFormatError, match="format 9, this version reads"):
            newest_snapshot(tmp_path)


@pytest.mark.fault(22)
def test_a_link_is_no_snapshot(tmp_path, caplog):
    elsewhere = tmp_path / "elsewhere"
    path = write_snapshot(elsewhere, {"a": 1})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="none of the snapshots"):
        newest_snapshot(folder)
    assert "it is a link" in caplog.text


@pytest.mark.fault(23)
def test_a_snapshot_that_cannot_be_written_is_told_and_the_last_one_stays(tmp_path, monkeypatch):
    server = ShardServer(made(), folder=tmp_path, every=1e6)
    server.snapshot()
    server.update(EVERYTHING, LOSSES, steps(3))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"takes \d+ bytes and could not be written: .*No space left"):
        server.snapshot()
    assert "shard 1 could not write a snapshot" in server.status().trouble
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.safetensors"]
    monkeypatch.undo()
    assert server.snapshot()
    assert server.status().trouble == ""


def test_snapshots_of_a_shard_made_otherwise_are_refused(tmp_path):
    ShardServer(made(smoothing=0.5), folder=tmp_path, every=1e6).snapshot()
    with pytest.raises(ValueError, match=r"of a shard with smoothing=0.5, this one has smoothing=0.0; make it alike"):
        ShardServer(made(), folder=tmp_path, every=1e6)


def test_a_folder_is_that_of_one_store_at_a_time(tmp_path, monkeypatch):
    """But for a shard that was started again while the process it had is still there."""
    server = ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 1")
    server.snapshot()
    monkeypatch.setattr(shard_folder, "PATIENCE", 0.0)
    here = rf"is in use by a shard of another store: actor 1, process {os.getpid()} on .*\. Name another folder"
    with pytest.raises(ValueError, match=here):
        ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 12")
    again = ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 1", again=True)
    again.close()
    with pytest.raises(ValueError, match=here):  # as the first has it still
        ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 12")
    monkeypatch.setattr(shard_folder, "PATIENCE", 60.0)
    threading.Timer(0.3, server.close).start()
    other = ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 12")  # which waits for that
    assert (tmp_path / "lock").read_text().startswith(f"actor 12, process {os.getpid()}")
    other.close()


def test_a_folder_that_cannot_be_locked_is_trouble_of_the_snapshots_alone(tmp_path):
    (tmp_path / "file").write_text("")
    server = ShardServer(made(), folder=tmp_path / "file", every=1e6, owner="actor 1")
    with pytest.raises(OSError, match="file"):
        server.snapshot()
    assert "could not write a snapshot" in server.status().trouble
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("something")
    (tmp_path / "lock").symlink_to(elsewhere)
    ShardServer(made(), folder=tmp_path, every=1e6, owner="actor 1").close()
    assert elsewhere.read_text() == "something"


def test_snapshots_are_written_by_the_clock(tmp_path):
    server = ShardServer(made(), folder=tmp_path, every=0.01)
    server.update(EVERYTHING, LOSSES, steps(3))
    pause = threading.Event()
    for _ in range(3000):
        if newest_snapshot(tmp_path) is not None and newest_snapshot(tmp_path)["received"] == 1:
            break
        pause.wait(0.01)
    else:
        pytest.fail("no snapshot in 30 s")
    server.close()


def test_a_server_is_safe_for_threads(tmp_path):
    """Draws, updates and snapshots at the same time: in the end all is as if they had come one by one."""
    server = ShardServer(made(), folder=tmp_path, every=1e6)
    failed = []

    def guarded(work):
        try:
            for step in range(60):
                work(step)
        except Exception as error:
            failed.append(error)

    works = [
        lambda step: server.update(EVERYTHING, LOSSES * (step + 1), steps(step)),
        lambda step: server.update(EVERYTHING, LOSSES * (step + 1), steps(step)),
        lambda step: server.draw([Order(3, 0.5, passes=True)], step),
        lambda step: server.snapshot(),
    ]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    np.testing.assert_allclose(server.priorities(), LOSSES * 60, rtol=1e-6)
    assert server.status().received == 120
    server._sampler._store.check()


# --- options


def test_blocks_are_made_alike():
    losses = np.arange(float(N))
    mades = made_alike(N, SHARDS, **OPTIONS, losses=losses)
    assert [made.shard for made in mades] == [0, 1, 2, 3]
    assert len({made.known for made in mades}) == SHARDS
    assert mades[1].described() != mades[2].described()


def test_known_losses_are_taken_once_and_are_in_a_snapshot_at_once(tmp_path):
    (_, mine, _, _) = made_alike(N, SHARDS, **OPTIONS, losses=np.arange(float(N)))
    losses = np.arange(12.0, 25.0)
    server = ShardServer(mine, folder=tmp_path, every=1e6)
    assert not server.hello().begun
    assert not server.snapshot()  # of what it does not know yet
    with pytest.raises(ValueError, match="not those that the shard is made with"):
        server.begin(losses + 1)
    server.begin(losses)
    server.update(np.array([0]), np.array([99.0]), steps(8, 1))
    server.begin(losses)  # of another who joined at the same time
    np.testing.assert_allclose(server.priorities(), [99.0, *losses[1:]])
    assert server.status().done == SIZE  # there is no first pass
    again = ShardServer(mine, folder=tmp_path, every=1e6, again=True)
    assert again.hello().begun
    np.testing.assert_allclose(again.priorities(), server.priorities())  # a snapshot of that moment


def test_a_shard_that_has_lost_the_known_losses_begins_no_first_pass():
    mine = made_alike(N, SHARDS, **OPTIONS, losses=np.arange(float(N)))[1]
    drawn = ShardServer(mine, again=True).draw([Order(20, 0.5, passes=True)], 0)
    np.testing.assert_allclose(drawn.probability, 1 / SIZE)
    assert drawn.status.done == SIZE


OPTIONS = {
    "priority": "loss", "smoothing": 0.0, "scheme": "multinomial", "initial_priority": 1.0, "first_pass": True,
    "warmup": 0, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"priority": "auto"}, ValueError, "priority='auto' is named later"),
        ({"priority": "relative"}, ValueError, "priority"),
        ({"scheme": "without_replacement"}, ValueError, "scheme must be one of 'multinomial', 'systematic'"),
        ({"smoothing": 1.0}, ValueError, r"smoothing must be in \[0, 1\)"),
        ({"first_pass": 0.5}, TypeError, "first_pass must be True or False"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_options_that_shards_cannot_have(options, error, message):
    with pytest.raises(error, match=message):
        made_alike(N, SHARDS, **{**OPTIONS, "losses": None, **options})


def test_a_warning_that_is_none_is_not_given(caplog):
    """Steps are counted elsewhere: a shard does not say that there were not so many."""
    caplog.set_level(logging.WARNING, "sampler")
    ShardServer(made()).update(EVERYTHING, LOSSES, steps(1000))
    assert caplog.text == ""
