"""`python -m needlework.cli`: the same as the `needlework` command."""

from needlework.cli.app import main

if __name__ == "__main__":
    main()
