"""The host-wide store of KV states: what one worker has computed, any other may go on from."""
