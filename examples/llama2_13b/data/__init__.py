"""Text to batches: samples, chat templates, tokenizers, packing, order."""
