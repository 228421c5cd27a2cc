"""criticism."""
