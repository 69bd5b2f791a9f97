"""The library beside others: what their users need to take our samples and losses, and nothing that they do better."""
