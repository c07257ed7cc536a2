"""Common to all tests. That this file is here puts its folder on the path, so that tests can import `support` and `model`."""
