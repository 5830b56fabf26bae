"""Tests of the WebRTC transport."""
