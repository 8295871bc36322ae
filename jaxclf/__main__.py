"""python -m jaxclf: the command line."""

import sys

from jaxclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
