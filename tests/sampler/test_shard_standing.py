"""Where shards stand, as their answers tell, which may come late; what is lost with a death is counted once."""

from __future__ import annotations

from sampler.shard_server import Status
from sampler.shard_standing import Standing


def status(life, received, loaded=0, trouble=""):
    return Status(life, received, loaded, total=1.0, done=0, seen=0, late=0, step=0, newest=-1, trouble=trouble)


def told(*statuses):
    standing = Standing(1, name="importance")
    for one in statuses:
        standing.take(0, one)
    return standing


def test_an_answer_that_is_older_than_the_last_is_left():
    standing = told(status(7, 3))
    assert not standing.take(0, status(7, 2))
    assert standing.take(0, status(7, 3))
    assert standing.all() == [status(7, 3)]


def test_what_is_lost_is_what_was_known_less_what_the_next_life_began_with():
    standing = told(status(7, 30), status(8, 12, loaded=10))
    assert (standing.restarts, standing.lost_updates) == (1, 20)
    standing.take(0, status(9, 11, loaded=11))
    assert (standing.restarts, standing.lost_updates) == (2, 21)


def test_answers_of_a_life_that_is_over_are_no_death_and_may_tell_of_more_that_is_lost():
    standing = told(status(7, 12), status(8, 20, loaded=20))
    assert standing.lost_updates == 0  # a snapshot had all that was known
    assert not standing.take(0, status(7, 19))
    assert standing.lost_updates == 0
    assert not standing.take(0, status(7, 23))
    assert not standing.take(0, status(7, 22))
    assert (standing.restarts, standing.lost_updates) == (1, 3)
    assert standing.all() == [status(8, 20, loaded=20)]


def test_it_is_complete_when_all_have_told():
    standing = Standing(2, name="importance")
    assert not standing.complete
    standing.take(1, status(1, 0))
    assert not standing.complete
    standing.take(0, status(2, 0))
    assert standing.complete


def test_trouble_is_said_once(caplog):
    told(status(7, 1, trouble="the disk is full"), status(7, 2, trouble="the disk is full"), status(7, 3))
    assert caplog.text.count("the disk is full") == 1
