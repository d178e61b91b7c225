"""The engine: knows tensors, not architectures. Imports neither torch nor transformers for a plain conversion.

`effconv.convert(...)`, the function, is `effconv.api.convert`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:convert"
make_callable(__name__)
