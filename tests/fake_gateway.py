"""`python -m fake_gateway --control-fd N`. See fake_child.py."""

from fake_child import gateway, main

if __name__ == "__main__":
    main(gateway)
