"""``python -m mkcowfs`` is the `mkcowfs` command."""

from mkcowfs.cli import main

if __name__ == "__main__":
    main()
