"""The systems that the papers compare with, one a file: each gives items codes, and `codes.train_codes` trains one decoder on all of them."""
