"""engines/soft."""
