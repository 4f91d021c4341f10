"""Measurements of Kassa; `./kassa bench --help` explains them."""
