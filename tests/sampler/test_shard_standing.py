"""Where shards stand, as their answers tell, which may come late; what is lost with a death is counted once."""

from __future__ import annotations

import itertools
import math

import pytest

from sampler.shard_server import Status
from sampler.shard_standing import Standing


def status(life, received, loaded=0, trouble=""):
    return Status(life, received, loaded, total=1.0, done=0, seen=0, late=0, step=0, newest=-1, trouble=trouble)


AT_LAST, BEFORE = math.inf, 0.0  # when a call was sent: after all other answers, and before them


def told(*statuses):
    standing = Standing(1, name="importance")
    for one in statuses:
        standing.take(0, one, AT_LAST)
    return standing


def test_an_answer_that_is_older_than_the_last_is_left():
    standing = told(status(7, 3))
    assert not standing.take(0, status(7, 2), AT_LAST)
    assert standing.take(0, status(7, 3), AT_LAST)
    assert standing.all() == [status(7, 3)]


def test_what_is_lost_is_what_was_known_less_what_the_next_life_began_with():
    standing = told(status(7, 30), status(8, 12, loaded=10))
    assert (standing.restarts, standing.lost_updates) == (1, 20)
    standing.take(0, status(9, 11, loaded=11), AT_LAST)
    assert (standing.restarts, standing.lost_updates) == (2, 21)


def test_answers_of_a_life_that_is_over_are_no_death_and_may_tell_of_more_that_is_lost():
    standing = told(status(7, 12), status(8, 20, loaded=20))
    assert standing.lost_updates == 0  # a snapshot had all that was known
    assert not standing.take(0, status(7, 19), BEFORE)
    assert standing.lost_updates == 0
    assert not standing.take(0, status(7, 23), BEFORE)
    assert not standing.take(0, status(7, 22), BEFORE)
    assert (standing.restarts, standing.lost_updates) == (1, 3)
    assert standing.all() == [status(8, 20, loaded=20)]


def lives(number):
    """Three lives, each with the snapshot that the one before had written; 5 and 4 updates are lost."""
    return {1: status(1, 10), 2: status(2, 9, loaded=5), 3: status(3, number, loaded=5)}


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
@pytest.mark.parametrize("sent", [BEFORE, AT_LAST])
def test_the_newest_of_three_lives_is_the_one_that_answers_in_the_end(order, sent):
    """In whatever order their answers come, and whatever each was taken for before."""
    standing = Standing(1, name="importance")
    for place in order:
        standing.take(0, lives(6)[place], sent)
    assert standing.take(0, lives(7)[3], AT_LAST)
    assert standing.all() == [lives(7)[3]]
    assert standing.take(0, lives(8)[3], AT_LAST)
    assert not standing.take(0, lives(8)[2], BEFORE)
    assert not standing.take(0, lives(8)[1], BEFORE)
    assert standing.all() == [lives(8)[3]]
    assert standing.restarts == 2


def test_an_answer_of_a_life_that_was_missed_adds_what_it_had_learnt():
    standing = told(status(1, 10), status(3, 6, loaded=5))
    assert (standing.restarts, standing.lost_updates) == (1, 5)
    assert not standing.take(0, status(2, 9, loaded=5), BEFORE)
    assert (standing.restarts, standing.lost_updates) == (2, 5 + 4)
    assert standing.take(0, status(3, 6, loaded=5), AT_LAST)


def test_it_is_complete_when_all_have_told():
    standing = Standing(2, name="importance")
    assert not standing.complete
    standing.take(1, status(1, 0), AT_LAST)
    assert not standing.complete
    standing.take(0, status(2, 0), AT_LAST)
    assert standing.complete


def test_trouble_is_said_once(caplog):
    told(status(7, 1, trouble="the disk is full"), status(7, 2, trouble="the disk is full"), status(7, 3))
    assert caplog.text.count("the disk is full") == 1
