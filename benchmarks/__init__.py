"""Measurements of this project beside others, told in ``benchmarks/README.md``.

They import the packages, never the reverse.
"""
