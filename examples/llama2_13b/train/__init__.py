"""The loop and what it needs: optimizer, learning rate, checkpoints, what is measured."""
