"""MEASURE: the gradient that enters a module's backward and the one that leaves it, on every pass."""
