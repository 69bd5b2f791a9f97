"""From rankings to numbers."""
