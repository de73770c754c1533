"""lbhost's benchmark: measures it beside llama-server in one run. Started by scripts/bench."""
