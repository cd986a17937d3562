"""What is stored and how it becomes samples: column three of Table 1."""
