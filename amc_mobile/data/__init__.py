"""Labelled images: where they come from, and what each is used for."""
