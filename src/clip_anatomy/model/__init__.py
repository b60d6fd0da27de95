"""Tensors in, tensors out: the towers, their weights, pixels and texts."""
