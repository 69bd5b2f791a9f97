"""zerosum_ext: train recommenders that do not just push what is popular."""

from __future__ import annotations

__version__ = "0.1.0"
