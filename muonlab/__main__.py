"""`python -m muonlab`."""

from muonlab.cli import main

if __name__ == "__main__":
    main()
