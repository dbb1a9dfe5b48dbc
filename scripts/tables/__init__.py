"""The parts of scripts/reproduce_tables.py: which cells there are, how one is trained and measured, how all are shown."""
