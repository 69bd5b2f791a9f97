"""From parameters to scores: models, and methods that wrap them."""
