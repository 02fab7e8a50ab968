"""How long an epoch is, and how ``fit`` comes to end one whose length is known only then.

    steps = math.ceil(epoch_samples(sampler, len(data)) / batch_size)

A sampler that leaves samples out (``PruningSampler``, ``SelectiveSampler``) makes epochs of fewer batches, and of how
many it cannot say before they begin. Such a dataset has an unknown cardinality, and ends where the sampler's pass does.

Keras 3.15 finds that out by a step more than there is data for. It warns; what of that step does not depend on the
data has been done all the same (the optimizer counts it, and so does the mean that is reported as the loss); and the
number of steps of the first epoch is taken for that of all. So ``end_epoch`` ends the epoch after its last step::

    def on_train_batch_end(self, batch, logs=None):     # of a callback
        end_epoch(self.model, sampler, batch)

With ``train.repeat()`` and ``steps_per_epoch=`` an epoch is what the user says, and nothing is done.
"""

from __future__ import annotations

import inspect
from typing import Any

from pipeline.iterations import iterations_over


def epoch_samples(sampler: Any, num_samples: int) -> int:
    """How many samples an epoch draws, at most: N, ``num_samples``; of a ``Shard`` as many as the largest block has.

    N is asked for because not every sampler knows it: a ``Presampler`` draws from a stream.
    """
    return getattr(sampler, "epoch_samples", num_samples)


def end_epoch(model: Any, sampler: Any, batch: int) -> None:
    """End the epoch of the ``fit`` of ``model`` that is running, where ``batch``, counted from 0, was its last.

    The iteration over the draws of ``sampler`` that began last is that of the epoch. Nothing happens for a sampler
    whose epochs are always of the same length.
    """
    if getattr(sampler, "epochs_vary", False):
        iterations = iterations_over(sampler)
        length = iterations.lengths.get(iterations.current)
        if length is not None and batch + 1 >= length:
            steps = _steps_of_fit(model)
            if steps is not None and steps.num_batches is None:
                steps._epoch_iterator = iter(())


def _steps_of_fit(model: Any) -> Any:
    """Keras's iterator over the steps, a local variable of ``fit``; None where no ``fit`` of ``model`` is running."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            found = frame.f_locals.get("epoch_iterator")
            if found is not None:
                return found
        frame = frame.f_back
    return None
