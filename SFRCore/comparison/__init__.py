"""Comparing methods: several rows, several seeds, one table."""

from SFRCore.comparison.plan import Row, parse_rows
from SFRCore.comparison.running import compare
from SFRCore.comparison.table import Comparison, read_comparisons

__all__ = ["Comparison", "Row", "compare", "parse_rows", "read_comparisons"]
