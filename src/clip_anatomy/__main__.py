"""`python -m clip_anatomy` is `clip-anatomy`."""

from clip_anatomy.show.cli import main

if __name__ == "__main__":
    main()
