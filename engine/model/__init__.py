"""The model: its configuration, its families, its layers."""
