"""Readers of users' files, and locks on the folders that are written to."""
