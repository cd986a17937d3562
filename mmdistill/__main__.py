"""The entry point of ``python -m mmdistill``, which torchrun starts too, and of the command ``mmdistill``."""

import sys


def run() -> int:
    """Run the command line; an interruption during its imports ends it as quietly as a later one."""
    try:
        from mmdistill.cli import main  # here, so that Ctrl-C finds its handler

        return main()
    except KeyboardInterrupt:
        print("mmdistill: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
