"""Sound: chunks, codecs, queues and the playout. Knows samples, knows no calls."""
