"""The systems that the papers compare with, one a file: each gives items codes, and `codes.train_codes` trains a decoder on them."""
