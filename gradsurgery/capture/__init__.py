"""Ways to get the T gradients of one step; all yield ``TaskGradients``."""
