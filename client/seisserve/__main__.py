"""`python -m seisserve`: the command line."""

from seisserve.cli import main

if __name__ == "__main__":
    main()
