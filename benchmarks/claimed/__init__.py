"""What `make claims` checks."""
