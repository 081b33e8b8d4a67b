"""What each named step of the loop produces."""
