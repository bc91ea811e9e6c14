"""Data sets at an address: pushed there whole, pulled from there, and described on a card."""
