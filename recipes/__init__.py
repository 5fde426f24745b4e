"""Recipes that make what the package ships: run them from the root of the repository."""
