"""What computes answers, one file for each library."""
