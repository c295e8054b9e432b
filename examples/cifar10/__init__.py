"""CIFAR-10, or drawings of its ten classes: a small network with a fine, a coarse and a self-supervised task."""
