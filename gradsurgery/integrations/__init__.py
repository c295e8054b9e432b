"""Loops people already have: an optimizer with ``pc_backward``, and one file a framework, imported by who uses the framework."""
