"""Fine-tunes a converted repo for a task, on transformers' Trainer, and writes a new repo.

The files:

    options     flags of `effconv finetune`                                            (no torch)
    tasks       tasks, heads, columns and metrics as data, GLUE's too                  (no torch)
    reading     files or a dataset → rows with the task's columns                      (no torch)
    labels      a column of labels → outputs of a head, and what does not fit          (no torch)
    heads       tensors of a repo, those that a head needs, those that are trained     (no torch)
    buckets     seed and epoch → rows in batches of similar length                     (no torch)
    models      the repo with the task's head
    features    rows → tokens, tokens → batches
    losses      one number, normalised over the step
    metrics     predictions → metrics
    checkpoints Trainer's checkpoints, read by `--resume`
    trainer     Trainer's arguments, sampler and progress
    results     the new repo: weights, head, manifest, card
    run         all of it, from options to a published repo

A step is a function of seed and step alone, as in `effconv adapt`: `buckets` orders rows for the batch of a whole step,
of which every process takes its part, and `losses` divides sums by a count over the whole step. So two processes give
the weights of one, and a resumed run those of an unbroken one.

`effconv.finetune(...)`, the function, is `effconv.api.finetune`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:finetune"
make_callable(__name__)
