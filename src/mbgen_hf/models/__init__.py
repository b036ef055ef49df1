"""The hub room: every file here may travel with a checkpoint and runs there without this package."""
