"""Tensors in, tensors out. Importing any of it tells transformers' Auto classes of our models."""

from promptmeup.models.pretrained import register

register()
