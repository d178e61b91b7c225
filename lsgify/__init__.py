"""The LSG target: local, sparse and global attention ("LSG Attention", arXiv 2210.15497).

`effconv.lsgify(model, tokenizer, ...)`, the function, is `effconv.lsgify.inmemory.lsgify`.
"""

from ..callable_package import make_callable

__api__ = "effconv.lsgify.inmemory:lsgify"
make_callable(__name__)
