"""Targets other than LSG, and the calibration that runs the source model before a conversion writes."""
