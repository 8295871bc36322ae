"""The program `jaxclf`, which is `python -m jaxclf`."""

import sys

from jaxclf.cli import huge_pages


def run() -> int:
    """Run the command of the command line; return its exit code."""
    if not {"--help", "-h", "--version"} & set(sys.argv[1:]):
        huge_pages.start_again()
    from jaxclf.cli.main import main  # after that, as it imports much

    return main()


if __name__ == "__main__":
    sys.exit(run())
