"""Losses: pure functions of tensors and knobs."""
