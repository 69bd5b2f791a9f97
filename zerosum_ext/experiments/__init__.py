"""Runs, reproductions of published experiments, figures and reports."""
