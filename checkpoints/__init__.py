"""Checkpoint savers."""
