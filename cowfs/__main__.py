"""``python -m cowfs`` is the `cowfs` command."""

from cowfs.cli import main

if __name__ == "__main__":
    main()
