"""Verification of an engine against its reference, and evaluation on protocols."""
