"""`python -m fake_fork_server --control-fd N`. See fake_child.py."""

from fake_child import fork_server, main

if __name__ == "__main__":
    main(fork_server)
