"""What a run leaves behind: a journal that is always there, MLflow when it answers, a line for the eye."""
