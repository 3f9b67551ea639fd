"""``python -m abyssal`` is the ``abyssal`` command."""

from abyssal.cli.main import main

if __name__ == "__main__":
    main()
