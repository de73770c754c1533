"""The fork server and worker processes: weights, contexts, the engine loop."""
