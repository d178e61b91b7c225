"""A repo as an ONNX graph or a torch.export program, which runs without the repo's code.

The repo's code branches on the length of its input and on its padding, which no graph can. While a graph is made,
each token mixing is replaced by a form of it that is the same for every length (`forms`), with the repo's parameters.
What that gives is compared with the repo itself before anything is published.

The files:

    options     flags and their values                                    (no torch)
    refusals    which repos no graph can hold                             (no torch)
    loaded      a repo's model with its sentence-transformers modules, and the names of what they return
    forms       the forms for graphs, and the model with them in it
    graphs      the model → a program of torch.export → ONNX
    checks      graph against repo: the lengths, the padded batches, the tolerance
    small       8-bit and 16-bit weights, their similarity and speed
    layout      the files beside the graph
    run         all of it, from options to a published folder

`effconv.export(...)`, the function, is `effconv.api.export`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:export"
make_callable(__name__)
