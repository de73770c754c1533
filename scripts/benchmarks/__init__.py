"""Measures lbhost beside llama.cpp's own programs, in one run. Started by scripts/bench."""
