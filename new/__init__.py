"""Repos with random weights, to train from scratch: `effconv new TARGET`.

A new model goes through the plan, the files and the checks of a conversion, from a source that has a config and a
tokenizer but no weights. Every tensor is drawn by its name and the seed.

The files:

    options     what the command takes beside the target's own options
    families    the fields of each family's config, and what its sizes are called
    presets     sizes, and published models, by name                                  (data)
    tokenizer   a tokenizer from a folder or the Hub, and how many tokens it has
    config      options → the config of the stock model
    run         all of it, from options to a published repo

`effconv.new(...)`, the function, is `effconv.api.new`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:new"
make_callable(__name__)
