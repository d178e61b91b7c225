"""Pretraining: trains a repo on text alone, from random weights or onward, as the published systems were trained.

The loop, checkpoints, resuming and the publication of the result are those of `effconv adapt` (adapt/).

    options      flags, presets' values and defaults in one place            (no torch)
    presets      the published recipes as data                               (no torch)
    objectives   mlm, mlm+nsp, mlm+sop, clm: which heads they need           (no torch)
    schedules    the learning rate of a step                                 (no torch)
    corpus       texts or a prepared folder → examples, those that are held out
    batches      examples → global batches, padded and masked
    models       the model with the heads of the objective, and its losses
    heldout      loss, perplexity and accuracies on held-out text
    trainer      what of the loop is pretraining
    log          the figures of each step as JSON lines
    run          all of it, from options to a published repo

A batch is a function of the seed and the step alone, and a loss is a sum over a process's rows divided by a count over
the global batch, as in adapt/. Several processes give the weights of one, and a resumed run those of an unbroken one.

`effconv.pretrain(...)`, the function, is `effconv.api.pretrain`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:pretrain"
make_callable(__name__)
