"""The report's data and its renderings."""
