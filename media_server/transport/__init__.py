"""The ear and the mouth: how sound and events travel."""
