"""The tongue: wire formats, both ways. No sockets."""
