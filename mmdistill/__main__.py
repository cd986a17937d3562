"""``python -m mmdistill``, which is also what torchrun starts, and the command ``mmdistill``."""

import sys


def run() -> int:
    """Run the command line; an interruption while modules are imported ends it as quietly as later ones."""
    try:
        from mmdistill.cli import main  # here, so that Ctrl-C finds its handler

        return main()
    except KeyboardInterrupt:
        print("mmdistill: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
