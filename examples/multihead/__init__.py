"""Four answers from one picture of a product: company, model, diameter, length, by a multi-head Vision Transformer."""
