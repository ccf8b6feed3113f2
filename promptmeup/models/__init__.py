"""The student and the teacher: a text half, a vision encoder, a fusion half and heads; tensors in, tensors out."""
