"""`python -m fake_fork_server --control-fd N`. See fake_child.py."""

from fake_child import main, template

if __name__ == "__main__":
    main(template)
