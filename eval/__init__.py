"""Scores of a repo on tasks of mteb and on a user's own retrieval task, written into the model card.

The files:

    options   flags and their values                                     (no torch)
    folder    a retrieval task in a folder, in the layout of BEIR        (no torch)
    tasks     names and folders as tasks of mteb, with their data loaded
    card      the card's block and the entries of `model-index`          (no torch)
    run       `effconv eval`: tasks → scores

`effconv.eval(...)`, the function, is `effconv.api.eval`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:eval"
make_callable(__name__)
