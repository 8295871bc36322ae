"""Figure 5.3: several classes of one picture side by side.

Run: python experiments/figure_5_3.py IMAGE... --weights W [--model NAME] [--out DIR]

The maps of a picture share a scale. `--classes NAME NAME` chooses the classes; without it they are the three strongest.
Flags are those of `jaxclf maps`.
"""

import sys

from jaxclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["maps", *sys.argv[1:], "--top", "3"]))
