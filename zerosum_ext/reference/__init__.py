"""The definition of every op in plain PyTorch: what the compiled ops are tested against, and what runs without them."""
