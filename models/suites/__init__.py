"""Suites of evaluation: each measures one policy on its own items and writes them as data.measures says."""
