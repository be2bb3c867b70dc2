"""Llama 2: fine-tuned, exported, answering."""

import warnings

# Paddle 3.3 warns at its import; ccache is for compiling extensions, which nothing here does.
warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)
