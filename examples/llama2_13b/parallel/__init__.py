"""Several processes: copies of the model, and the parts of one."""
