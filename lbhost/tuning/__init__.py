"""How a box and a model are measured, and how what was found is kept."""
