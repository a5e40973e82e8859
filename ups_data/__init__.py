"""ups-data: raw physics simulations in, verified training artifacts out."""

__version__ = "0.1.0"
