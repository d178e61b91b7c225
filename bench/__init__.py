"""Speed and memory, measured: `effconv bench` for a user's models. The project's own bars are in benchmarks/.

The files:

    options     flags of `effconv bench`                       (no torch)
    sources     what a user names → what is measured, and its source
    models      a `Subject` as data, and how it is built
    worker      the process that runs one model                (torch)
    whole       models side by side, in turn: cases → rows
    findings    rows → the fastest at each length, crossovers
    run         all of it, with the cost of the conversion
    conversion  a whole conversion against copying and hashing the same weights
    picture     charts of a report, by matplotlib
    choices, advice, reasons                                   a user's texts → what to convert to

Results are ratios from one run that measures all forms in turn, reported with the machine's name.

`effconv.bench(...)`, the function, is `effconv.api.bench`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:bench"
make_callable(__name__)
