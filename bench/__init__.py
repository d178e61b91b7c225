"""Speed and memory, measured: `effconv bench` for a user's models, `make bench` for the project's own bars.

The files:

    options     flags of `effconv bench`                       (no torch)
    sources     what a user names → what is measured, and its source
    models      a `Subject` as data, and how it is built
    worker      the process that runs one model                (torch)
    whole       models side by side, in turn: cases → rows
    findings    rows → the fastest at each length, crossovers
    run         all of it, with the cost of the conversion
    picture, page                                              PNG and HTML of a report
    texts, choices, advice, reasons                            a user's texts → what to convert to
    bars        what `make bench` shows, section by section
    layers, lsg, bigs, mixed, shapes, conversion, startup      its sections

Results are ratios from one run that measures all forms in turn, reported with the machine's name.

`effconv.bench(...)`, the function, is `effconv.api.bench`.
"""

from ..callable_package import make_callable

__api__ = "effconv.api:bench"
make_callable(__name__)
