"""`python -m clip_anatomy` is `clip-anatomy`."""

import sys

from clip_anatomy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
