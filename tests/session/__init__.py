"""Whole calls in virtual time, on scripted engines."""
