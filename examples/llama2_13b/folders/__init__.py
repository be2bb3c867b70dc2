"""What a model is on disk: its configuration, the table of its parameters, and the folders and files that hold it."""
