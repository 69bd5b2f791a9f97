"""Who interacted with what: interactions, files, vocabularies, splits, and the samples drawn from them."""
