"""Other systems, one folder each, registered through the same interface as PaGoDA. The harness never imports them by name."""
