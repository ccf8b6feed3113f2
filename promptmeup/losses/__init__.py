"""Losses of a step. Nothing here knows how ranks talk: `exchange.Exchange` is what they need of it.

tiles       the matrix of similarities that is never stored, on a CPU (tiles_torch) and a GPU (tiles_triton)
exchange    columns of a contrast on their way to all ranks, and their gradients on the way back
contrast    all contrasts of a step as one differentiable function
image_text, soft_label      the two kinds of targets: true matches by id, labels over prompts
matching    true or falsified pair, a loss of single rows
total       the weighted sum
"""
