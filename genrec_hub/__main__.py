"""`python -m genrec_hub` is `genrec`."""

from .cli import app


def main() -> None:
    """Runs the command line."""
    app(prog_name="genrec")


if __name__ == "__main__":
    main()
