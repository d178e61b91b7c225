"""Speed and memory, measured: `make bench`. Figures are ratios from one run, with the machine's name beside them."""
