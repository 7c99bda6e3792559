"""What trains the testbed's own weights."""
