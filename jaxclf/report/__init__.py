"""Tables and sweeps of runs, and the pages that show them."""
