"""Benchmarks: this project beside its peers, on the same weights, data, batch, precision and machine. `make bench` runs them."""
