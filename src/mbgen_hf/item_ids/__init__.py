"""Item -> code tuple."""
