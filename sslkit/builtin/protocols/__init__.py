"""The built-in evaluation protocols."""
