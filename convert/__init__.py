"""The conversion engine. A plain conversion imports neither torch nor transformers.

`effconv.convert(...)`, the function, is `effconv.api.convert`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:convert"
make_callable(__name__)
