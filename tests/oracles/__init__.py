"""The methods as their papers print them: algorithms on full vectors in float64, without a Gram matrix."""
