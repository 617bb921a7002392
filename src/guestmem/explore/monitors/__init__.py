"""Monitors: they watch what the threads of a model do, word by word, and know rules that no single word shows."""
