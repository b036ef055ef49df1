"""What a user would otherwise use, behind one small interface."""
