"""The sections of benchmarks/coverage.py: in each module, functions that take a number of simulations and print cells."""
