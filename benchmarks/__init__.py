"""Benchmarks, run by hand: `python -m benchmarks`; see README.md here."""
