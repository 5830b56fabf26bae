"""Whole calls through real WebRTC, on the embedded engines."""
