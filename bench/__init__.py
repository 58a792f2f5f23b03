"""Measurements of speed. Run with `make bench`; results go to `bench/results/`."""
