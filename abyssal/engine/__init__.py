"""The engine: prompts in, tokens and text out, many at once over one latent cache."""
