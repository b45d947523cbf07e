"""Linear layers and experts with quantised weights, by the kind of their weights."""
