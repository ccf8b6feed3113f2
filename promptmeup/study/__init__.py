"""What a loss, a detector or a label is worth: the same chain of commands, with and without it or with errors made."""
