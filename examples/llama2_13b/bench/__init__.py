"""Training steps beside peers, and the overlap of a step: commands of their own."""
