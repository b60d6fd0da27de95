"""Protocols and measures: what a claim of this package is checked with."""
