"""Multi-token prediction: a byte-level transformer whose heads predict the next byte, the one after it, and so on."""
