"""report.html: a run as one page, without network and without scripts.

:mod:`svg` draws figures as text, :mod:`page` puts a page together from plain values, :mod:`names` reads the names of
items. None of them knows a run folder: :func:`zerosum_ext.experiments.runs.write_report` gives them their values.
"""

from zerosum_ext.experiments.report.names import read_names
from zerosum_ext.experiments.report.page import Figure, Listed, Page, Section, UserLists, render

__all__ = ["Figure", "Listed", "Page", "Section", "UserLists", "read_names", "render"]
