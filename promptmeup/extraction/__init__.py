"""Fine-tuning for named entities and relations: what a model predicts, how it is scored and compared."""
