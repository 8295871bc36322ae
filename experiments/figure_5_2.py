"""Figure 5.2: where a network sees the class of each picture.

Run: python experiments/figure_5_2.py IMAGE... --weights W [--model NAME] [--out DIR]

The thesis draws the last convolution's channel of the class, of a network without a classifier. W are of any head:
under a matrix, learned or fixed, the maps are class activation maps. Flags are those of `jaxclf maps`.
"""

import sys

from jaxclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["maps", *sys.argv[1:], "--top", "1"]))
