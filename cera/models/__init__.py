"""The frozen base model: loading, quantization, the loss of its frozen head, and compiled layers."""
