"""The supervisor process: control plane, owner of every other process."""
