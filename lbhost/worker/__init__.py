"""The template and worker processes: weights, contexts, the engine loop."""
