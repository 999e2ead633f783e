"""Consistency models: one network evaluation from any noise level to the image, distilled from a teacher or trained alone."""
