"""The life of a call, from the server's side."""
