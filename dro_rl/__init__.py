"""Direct Retrieval-augmented Optimization (arXiv 2505.03075) as an RL framework."""
