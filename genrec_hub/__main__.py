"""`python -m genrec_hub` is `genrec`."""

import io
import sys

from .cli import app


def main() -> None:
    """Runs the command line; titles of any language come out as UTF-8, whatever the terminal's own encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    app(prog_name="genrec")


if __name__ == "__main__":
    main()
