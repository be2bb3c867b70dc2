"""A simulator on paper: what devices of given rates would do, from formulas. Nothing here is a measurement."""
