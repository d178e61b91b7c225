"""Converted models that another program saved (Trainer, sentence-transformers, PEFT, ...): read as repos, and kept.

The files:

    view        such a folder as a repo, without writing into it: every command reads it so
    code        its code must be effconv's
    mending     what the program lost or changed: weights, config, tokenizer
    run         `effconv adopt`: checked, and made a repo again

`effconv.adopt(...)`, the function, is `effconv.api.adopt`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:adopt"
make_callable(__name__)
