"""Texts for multi-task learning: generated reviews, or CSV and TSV files."""
