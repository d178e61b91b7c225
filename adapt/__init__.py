"""Recovers the quality that a conversion lost: a short training of a converted repo against its source.

A run has one or more phases. In each, the source (the teacher) and the converted model (the student) run on the same
batch of text, and one or more objectives measure how they differ: layer by layer with the teacher's own inputs
(`attention`), end to end (`hidden`, `logits`, `sentence`), or on masked tokens without a teacher (`mlm`).

The files:

    recipes     which phases, for which target             (no torch)
    documents   files and datasets → documents, those that are held out, and proof that they stay out
    batches     a step number → the same global batch on any number of processes
    models      student, teacher, and which parameters are trained
    positions   training the positions beyond the source's alone
    teacher     one run of the teacher, and what is kept of it
    objectives  teacher's run and batch → one loss, normalised over the global batch
    contrastive long texts against the teacher's embeddings of their pieces
    ranking     which long document does a piece come from: the task, its ranks and their errors
    heldout     fidelity on held-out text, before, during and after
    opening     how every training begins and stops, those of `effconv pretrain` and `finetune` too
    checkpoints saved state of a run, read by `--resume`
    loop        the loop, on accelerate, which `effconv pretrain` uses too
    trainer     what of it is training against a teacher
    sentence    the modules of a sentence-transformers repo after its encoder     (no torch)
    dense       dense layers after the pooling, and whitening
    results     the new repo: weights, manifest, card, plot
    verified    the checks of a trained repo, and their results in its manifest
    run         all of it, from options to a published repo
    retrieval   the ranking task of source and repos, beside the training; its parts are controls (names of the ways),
                ways, whole, retrieval_text, stretched and embedding_cache

Two rules make resuming and processes exact. A batch is a function of seed and step alone, so that every process makes
the whole of it and takes its rows; and a loss is a sum over the process's rows divided by a count over the global
batch, so that the losses, and so the gradients, of all processes add up to those of one process with all rows.

`effconv.adapt(...)`, the function, is `effconv.api.adapt`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:adapt"
make_callable(__name__)
