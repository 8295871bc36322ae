"""Figure 5.4: the same picture at several sizes: a larger input has finer maps.

Run: python experiments/figure_5_4.py IMAGE... --weights W [--model NAME] [--out DIR]

The thesis enlarges the input from 224 to 500 pixels. The first line is the square that the weights are used on, the
second the whole picture with a short side of 500. Flags are those of `jaxclf maps`.
"""

import sys

from jaxclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["maps", *sys.argv[1:], "--top", "1", "--size", "own", "500"]))
