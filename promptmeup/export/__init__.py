"""A run as a folder that transformers, MLflow and people can use: weights, processors, card."""
