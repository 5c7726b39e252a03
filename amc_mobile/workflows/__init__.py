"""One module per command: wires the parts, never prints, reports progress through a callback."""
