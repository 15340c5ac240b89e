"""Mixing in the trainers that people use: one module for each, imported only by those who name it."""
