"""`python -m fr_edge` is the command line; torchrun needs it so."""

from .cli.main import main

if __name__ == "__main__":
    main()
