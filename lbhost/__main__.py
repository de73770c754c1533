"""`python -m lbhost` is `lbhost`."""

from lbhost.cli import main

if __name__ == "__main__":
    main()
