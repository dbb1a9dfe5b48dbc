"""What scripts/benchmark.py measures, by noun: every function times our form beside its plain form in one run."""
