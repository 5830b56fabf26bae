"""The machines: one file per product, each behind a protocol of four methods at most."""
