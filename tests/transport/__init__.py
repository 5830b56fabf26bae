"""Tests of how sound and events travel."""
