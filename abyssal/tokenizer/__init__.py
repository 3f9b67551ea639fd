"""Text and conversations to tokens, and back."""
