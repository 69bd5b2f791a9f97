"""From batches to updated parameters."""
