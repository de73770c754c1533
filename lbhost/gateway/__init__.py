"""The gateway process: data plane, HTTP in, tokens out."""
