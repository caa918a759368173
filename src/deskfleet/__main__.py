"""`python -m deskfleet`: the same as the `deskfleet` command."""

from deskfleet.cli.main import main

if __name__ == "__main__":
    main()
