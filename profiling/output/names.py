"""What the two sides are called, everywhere."""

OURS, NATIVE = "my_ops", "native"
