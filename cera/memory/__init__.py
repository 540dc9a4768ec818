"""The memory that a training run needs, estimated before it starts."""
