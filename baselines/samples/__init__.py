"""Images that somebody else made, or that a program makes, as rows of a table."""
