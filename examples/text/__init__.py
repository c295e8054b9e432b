"""Sentences with a sentiment and a topic: one LSTM, two heads."""
