"""What is matched between real and synthetic data: column one of Table 1."""
