"""Texts as points of a frozen sentence encoder."""
