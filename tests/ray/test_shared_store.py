"""A store that several share, on Ray as it is: by name, on 127.0.0.1, with shards that are killed, paused and removed.

One Ray for all of them: 100 s, most of it until processes have started, and some minutes for the soak of fifty kills.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from sampler import ShardedSampler
from sampler.ray_calls import ShardLost
from sampler.ray_cluster import check_token, lets_in_anybody

from .conftest import SECONDS, patiently, scheduler_of, stop, until

ray = pytest.importorskip("ray")

N, SHARDS, B = 60, 2, 8
LOSSES = np.random.default_rng(0).gamma(1.0, size=N)
ROOT = Path(__file__).parents[2]


def store(name, **options):
    return ShardedSampler(N, name=name, **{"shards": SHARDS, "timeout": SECONDS, "snapshot_every": 3600.0, **options})


@pytest.fixture(scope="module")
def shared(with_token, tmp_path_factory):
    """The first one starts Ray."""
    assert not ray.is_initialized()
    folder = tmp_path_factory.mktemp("snapshots")
    with patiently(lambda: store("shared", snapshots=folder, max_restarts=100)) as sampler:
        yield sampler
        sampler.remove()
    ray.shutdown()


def train(sampler, steps, losses=LOSSES):
    for _ in range(steps):
        draw = sampler.draw(B)
        sampler.update(draw.index, losses[draw.index], step=draw.step)


# --- where it listens, and whom it lets in


def descendants():
    """This process and all that it and they have started."""
    parents = {}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it is over
            parents[int(process)] = scheduler_of(process)
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def listening(processes):
    """The addresses that these processes listen on, as /proc tells: hexadecimal, of IPv4 and IPv6."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
                sockets.update(match.groups() if match else ())
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in sockets:
                addresses.append(columns[1].rsplit(":", 1)[0])
    return addresses


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def test_nothing_listens_but_on_loopback(shared):
    processes = descendants()
    assert set(shared.processes()) <= set(processes)
    addresses = listening(processes)
    assert len(addresses) >= 3 + SHARDS  # what keeps the cluster, the scheduler, this process, and the shards
    assert set(addresses) <= set(LOOPBACK)


def test_shards_are_no_nicer_than_who_waits_for_them(shared):
    assert {os.getpriority(os.PRIO_PROCESS, process) for process in shared.processes()} == {os.nice(0)}


def test_the_check_sees_a_listener_on_all_addresses(shared):
    import socket

    with socket.create_server(("0.0.0.0", 0)):
        assert "00000000" in listening([os.getpid()])


def a_process(program, token=None, home=None, **environment):
    """A program in a Python of its own, which knows of this Ray no more than it is told."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    if token is not None:
        known["RAY_AUTH_TOKEN_PATH"] = str(token)
    if home is not None:
        known["HOME"] = str(home)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**known, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def in_a_process(program, **options):
    """What it said."""
    with a_process(program, **options) as process:
        try:
            said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def test_who_has_another_token_is_not_let_in(shared, tmp_path):
    """By a bare call to the cluster: its address, and a token that is not its own."""
    other = tmp_path / "other"
    other.write_text("ab" * 32)
    program = f"""
        import ray
        ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
        print("it was let in")
    """
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}
    ran = in_a_process(program, token=other, RAY_AUTH_MODE="token", **loopback)
    assert ran.returncode != 0
    assert "it was let in" not in ran.stdout
    assert "token" in ran.stderr.lower()


def test_a_remote_cluster_without_a_token_is_refused(tmp_path):
    program = """
        from sampler import ShardedSampler
        for address in ("10.255.255.1:6379", "ray://10.255.255.1:10001", "auto"):
            try:
                ShardedSampler(100, address=address)
            except PermissionError as error:
                print(error)
    """
    ran = in_a_process(program, home=tmp_path)
    lines = ran.stdout.splitlines()
    assert len(lines) == 3, ran.stderr
    for line in lines:
        assert "would be joined without a token" in line
        assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line


def test_a_token_is_enough_for_the_check(with_token):
    program = """
        import os
        from sampler.ray_cluster import check_token
        check_token("10.255.255.1:6379")
        print(os.environ["RAY_AUTH_MODE"])
    """
    ran = in_a_process(program, token=with_token)
    assert ran.stdout.strip() == "token", ran.stderr


OPEN = """
    import os
    import sys
    import ray
    from sampler.ray_cluster import _on_loopback
    with _on_loopback():
        ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def test_a_cluster_that_lets_in_anybody_is_refused(with_token, shared, monkeypatch):
    """Also by one who has a token; the one of these tests asks for it."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as these addresses are of 127.0.0.1
    assert not lets_in_anybody(ray.get_runtime_context().gcs_address)
    with a_process(OPEN, RAY_AUTH_MODE="disabled") as process:
        try:
            address = process.stdout.readline().strip()
            assert lets_in_anybody(address), process.stderr
            with pytest.raises(PermissionError, match="lets in whoever comes, with any token and without"):
                check_token(address)
        finally:
            process.kill()


# --- by name


def test_two_processes_meet_by_name(shared):
    """One draws and learns here; the other joins from a process of its own, and scores what is stalest."""
    train(shared, 12)
    shared.flush()
    address = ray.get_runtime_context().gcs_address
    program = f"""
        import os
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as this address is of 127.0.0.1
        import numpy as np
        from sampler import ShardedSampler
        with ShardedSampler({N}, shards={SHARDS}, name="shared", address={address!r}) as sampler:
            index = sampler.stalest(5)
            sampler.update(index, np.full(5, 50.0), step=sampler.step)
            print(sampler.step, *index)
    """
    ran = in_a_process(program, token=os.environ["RAY_AUTH_TOKEN_PATH"])
    assert ran.returncode == 0, ran.stderr
    step, *index = map(int, ran.stdout.split())
    assert step >= 12
    np.testing.assert_allclose(shared.priorities()[index], 50.0)
    again = store("shared")
    assert again.processes() == shared.processes()
    with pytest.raises(ValueError, match=r"made with smoothing=0.0, this one has smoothing=0.5"):
        store("shared", smoothing=0.5)


def test_who_joins_need_not_say_how_the_store_is_kept_and_may_not_say_otherwise(shared):
    """A refused one leaves nothing behind; what was not named is as the store has it, also for a shard made anew."""
    with store("kept", shards=1, snapshot_every=7.0, max_restarts=0) as sampler:
        for options, message in [
            ({"snapshot_every": 8.0}, r"snapshot_every=7.0, this one has snapshot_every=8.0"),
            ({"max_restarts": 5}, r"max_restarts=0, this one has max_restarts=5"),
            ({"snapshots": "elsewhere"}, r"snapshots=None, this one has snapshots="),
            ({"shards": 3}, r"shards=1, this one has shards=3"),
            ({"address": "10.255.255.1:6379"}, r"has joined the Ray at '127.0.0.1:\d+' already"),
        ]:
            with pytest.raises(ValueError, match=message):
                store("kept", **{"shards": 1, "snapshot_every": None, **options})
        address = ray.get_runtime_context().gcs_address
        for own in (address, address.replace("127.0.0.1", "localhost"), "auto"):
            store("kept", shards=1, snapshot_every=None, address=own)
        assert sampler._patient.calls.there() == 0
        for shard in (1, 2):
            with pytest.raises(ValueError, match="kept"):
                ray.get_actor(f"kept-{shard}", namespace="importance-sampling")
        sampler.remove()


def test_a_shard_made_again_is_kept_as_the_others_are(shared, tmp_path):
    with store("again", snapshots=tmp_path, snapshot_every=7.0, max_restarts=0) as sampler:
        sampler.update(np.arange(N), LOSSES, step=3)
        sampler.snapshot()
        os.kill(sampler.processes()[0], signal.SIGKILL)
        until(lambda: died_or_back(sampler) is True)
        again = store("again", snapshot_every=None)
        np.testing.assert_allclose(again.priorities(), LOSSES, rtol=1e-6)
        welcome = again._patient.ask_all("hello", shards=SHARDS)
        assert {own.kept for own in welcome} == {(str(tmp_path), 7.0, 0)}
        again.remove()


TRAINER = """
    import os
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as this address is of 127.0.0.1
    import numpy as np
    from sampler import ShardedSampler
    sampler = ShardedSampler(60, shards=2, name="trained", address=ADDRESS, first_pass=False)
    while True:
        draw = sampler.draw(8)
        sampler.update(draw.index, 1.0 + draw.index, step=draw.step)
        print(draw.step, flush=True)
"""


def test_a_trainer_is_killed_and_another_goes_on(shared):
    """What it has learnt stays, its step goes on, and draws are of what is known, exactly."""
    with store("trained", first_pass=False, prefetch=0) as sampler:
        program = TRAINER.replace("ADDRESS", repr(ray.get_runtime_context().gcs_address))
        with a_process(program, token=os.environ["RAY_AUTH_TOKEN_PATH"]) as trainer:
            for line in trainer.stdout:
                if int(line) >= 40:
                    break
            trainer.kill()  # in the middle of draws and updates
            assert trainer.wait() == -signal.SIGKILL
        assert (sampler.priorities() == 1.0 + np.arange(N)).sum() > N // 2
        sampler.draw(B)  # tells how far it has come
        assert sampler.step >= 40
        chance = sampler._plan.chance()
        draw, p = sampler.draw(B), p_of(sampler, chance)
        np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-5)
        np.testing.assert_allclose(draw.weight, 1 / (N * p[draw.index]), rtol=1e-5)
        train(sampler, 4)
        sampler.remove()


# --- shards that die


def p_of(sampler, chance):
    """(N,) p of a draw that was made with these chances of the shards, from the priorities as they are."""
    q, plan, p = sampler.priorities(), sampler._plan, []
    for shard in range(sampler.shards):
        own = q[plan.first[shard] : plan.first[shard] + plan.size[shard]]
        share = sampler.uniform_fraction * plan.uniform[shard] / chance[shard]
        p.append(chance[shard] * ((1 - share) * own / own.sum() + share / own.size))
    return np.concatenate(p)


def through_kills(sampler, kills, rng):
    """A linear model by gradient descent while shards are killed: at every step the expectation of the gradient by the
    p of the draw is the gradient of the mean loss, exactly. Gives the model's loss before and after.

    A draw changes no priority, so those that it was made with are read after it, from the shard as it then is.
    """
    x = rng.normal(size=(N, 3)) * rng.gamma(1.0, size=(N, 1))
    y, theta, losses = x @ [1.0, -2.0, 0.5], np.zeros(3), []
    for step in range(4 * kills):
        if step % 4 == 0:
            os.kill(sampler.processes()[int(rng.integers(SHARDS))], signal.SIGKILL)
        elif step % 7 == 0:
            sampler.snapshot()
        residual = x @ theta - y
        gradient = 2 * residual[:, None] * x
        chance = sampler._plan.chance()
        draw = sampler.draw(B)
        p = p_of(sampler, chance)
        assert p.sum() == pytest.approx(1.0, rel=1e-9)
        np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-5)
        np.testing.assert_allclose(draw.weight, 1 / (N * p[draw.index]), rtol=1e-5)
        expected = (p / (N * p) * gradient.T).sum(axis=1)
        np.testing.assert_allclose(expected, gradient.mean(axis=0), rtol=1e-9, atol=1e-12)
        assert draw.weight.max() <= 1 / sampler.uniform_fraction * (1 + 1e-6)
        theta -= 0.02 * (draw.weight[:, None] * gradient[draw.index]).mean(axis=0)
        sampler.update(draw.index, residual[draw.index] ** 2, step=draw.step)
        losses.append(float((residual**2).mean()))
    sampler.flush()
    return losses[0], losses[-1]


def kill_many(kills, tmp_path):
    name = f"killed-{kills}"  # of its own
    with store(name, snapshots=tmp_path, max_restarts=2 * kills, prefetch=0, first_pass=False) as sampler:
        before, after = through_kills(sampler, kills, np.random.default_rng(kills))
        summary = sampler.summary()
        sampler.remove()
    assert summary["step"] == 4 * kills
    assert summary["restarts"] == kills  # each was seen
    assert summary["lost_updates"] > 0
    return before, after


def test_a_run_goes_through_kills_and_every_draw_is_exact(shared, tmp_path):
    kill_many(2, tmp_path)


@pytest.mark.soak
def test_a_run_goes_through_fifty_kills_and_every_draw_is_exact(shared, tmp_path):
    before, after = kill_many(50, tmp_path)
    assert after < 0.05 * before


def test_a_shard_killed_in_the_middle_of_draws_is_waited_for(shared, caplog):
    """With batches drawn ahead and updates on their way, by its process and by Ray."""
    train(shared, 5)
    shared.snapshot()
    before = shared.summary()
    train(shared, 4)
    os.kill(shared.processes()[1], signal.SIGKILL)
    train(shared, 12)
    ray.kill(ray.get_actor("shared-0", namespace="importance-sampling"), no_restart=False)
    train(shared, 12)
    shared.flush()
    after = shared.summary()
    assert after["restarts"] - before["restarts"] == 2
    assert after["step"] - before["step"] == 28
    assert after["lost_updates"] > before["lost_updates"]
    assert "shard 1 of 'shared' has died, and is back" in caplog.text
    assert shared.probabilities().sum() == pytest.approx(1.0)


def test_draws_to_a_paused_shard_wait_and_are_not_sent_elsewhere(shared):
    with store("paused", first_pass=False, prefetch=0) as sampler:
        train(sampler, 2)
        sampler.flush()
        process = sampler.processes()[0]
        stop(process)
        try:
            assert sampler.poll(B, seconds=1.0) is None
            sent = sampler.summary()["calls"]
            sampler.update(np.arange(N), LOSSES, step=9)  # nobody waits for that
            assert sampler.poll(B, seconds=1.0) is None
            assert sampler.summary()["calls"] == sent + SHARDS  # the update: no draw was asked for again
            ordered = sampler._groups[0].ordered[0].counts
            assert ordered[0] > 0
        finally:
            os.kill(process, signal.SIGCONT)
        draw = sampler.draw(B)
        np.testing.assert_array_equal(np.bincount(sampler._plan.shard_of(draw.index), minlength=SHARDS), ordered)
        np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)
        sampler.remove()


def test_restarts_are_bounded(shared):
    with store("bounded", max_restarts=1, prefetch=0, shards=1) as sampler:
        for _ in range(2):
            os.kill(sampler.processes()[0], signal.SIGKILL)
            until(lambda: died_or_back(sampler))
        with pytest.raises(ShardLost, match=r"'bounded-0' is dead and does not start again.*max_restarts=1"):
            sampler.draw(B)
    again = store("bounded", shards=1)  # who makes it again has a new one
    assert again.draw(B).step == 0
    again.remove()


def died_or_back(sampler):
    """Whether a call comes to its end, one way or the other."""
    try:
        return sampler.processes()
    except ShardLost:
        return True


def test_a_shard_that_cannot_be_made_says_why(shared, tmp_path):
    (tmp_path / "broken-0").mkdir()
    (tmp_path / "broken-0" / "00000001.safetensors").write_bytes(b"nothing")
    with pytest.raises(ShardLost, match=r"none of the snapshots in .* is whole; remove them"):
        store("broken", snapshots=tmp_path, shards=1)


def test_what_was_removed_goes_on_from_its_snapshots(shared, tmp_path):
    with store("removed", snapshots=tmp_path, shards=1) as sampler:
        sampler.update(np.arange(N), LOSSES, step=3)
        sampler.snapshot()
        sampler.remove()
    with store("removed", snapshots=tmp_path, shards=1) as sampler:
        np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)
        assert sampler.step == 4
        actor = ray.get_actor("removed-0", namespace="importance-sampling")
        holder = (tmp_path / "removed-0" / "lock").read_text()  # no store of another namespace may write there
        assert holder.startswith(f"actor {actor._actor_id.hex()}, process {sampler.processes()[0]} on ")
        sampler.remove()


def test_who_has_a_store_that_was_removed_is_told_so_though_another_of_its_name_is_there(shared):
    old, other = (store("replaced", shards=1, prefetch=0, timeout=10.0) for _ in range(2))
    old.remove()
    with pytest.raises(ShardLost, match="'replaced-0' is dead and does not start again"):
        other.draw(B)
    with store("replaced", shards=1) as new:
        for sampler in (old, other):
            with pytest.raises(ShardLost, match="'replaced-0' was removed, or is dead, and another of that name is"):
                sampler.priorities()
        old.remove()  # of its own shards, which are gone
        assert new.draw(B).step == 0
        new.remove()


def test_fit(shared):
    """A Keras model trained by ``fit`` on a store that is shared: every batch is drawn, every loss comes back."""
    import keras

    from pipeline import LossFeedback, importance_dataset

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mean_squared_error")
    with store("fit") as sampler:
        train = importance_dataset((x, y), sampler, B)
        history = model.fit(train, epochs=6, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)]).history
        sampler.flush()
        summary = sampler.summary()
        assert summary["seen"] == N
        assert summary["updates"] == 6 * 8
        assert summary["step"] >= 6 * 8
        assert history["sampling/unseen"][-1] == 0.0
        assert history["loss"][-1] < 0.2 * history["loss"][0]
        assert 0.0 < sampler.priorities().max() < 1.0  # all are losses by now
        sampler.remove()
