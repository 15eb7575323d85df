"""Comparisons: methods, plans and seeds as one table."""
