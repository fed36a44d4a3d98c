"""Experiments: editors against cases, rows, statistics, tables, figures, claims."""
