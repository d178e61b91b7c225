"""Win back what a conversion lost: a short training of an emitted repo against the model it was made from.

A run goes through phases. In each, the source (the teacher) runs on a batch of text, the converted model (the student)
is given the same text, and one or several objectives say how they differ: layer by layer with the teacher's own inputs
(`attention`), end to end (`hidden`, `logits`, `sentence`), or on masked tokens without a teacher (`mlm`).

Every file has one subject, and what one hands to the next is data:

    recipes     which phases, for which target             (no torch)
    documents   files and datasets → documents, those that are held out, and proof that they stay out
    batches     a step number → the same global batch on any number of processes
    models      student, teacher, and which parameters are trained
    teacher     one run of the teacher, and what is kept of it
    objectives  teacher's run and batch → one loss, normalised over the global batch
    contrastive long texts against the teacher's embeddings of their pieces
    ranking     which long document does a piece come from: the task and its ranks
    heldout     fidelity on held-out text, before, during and after
    checkpoints what a kill must not lose, and what `--resume` reads
    trainer     the loop, on accelerate
    sentence    what a sentence-transformers repo has behind its encoder     (no torch)
    dense       dense layers behind the pooling, and one that whitens embeddings
    results     the new repo: weights, manifest, card, plot
    run         all of it, from options to a published repo
    retrieval   the ranking task of source and repos, beside the training

Two rules make resuming and processes exact. A batch is a function of seed and step alone, so that every process makes
the whole of it and takes its rows; and a loss is a sum over the process's rows divided by a count over the global
batch, so that the losses, and so the gradients, of all processes add up to those of one process with all rows.

`effconv.adapt(...)`, the function, is `effconv.api.adapt`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:adapt"
make_callable(__name__)
