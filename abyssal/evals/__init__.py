"""Measuring what a model knows: the same grades that rewards are made of."""
