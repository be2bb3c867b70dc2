"""`fusionkit plan train --verify`: runs the best plans for some steps, and corrects the models by what it saw."""
