"""A phone in pure Python: an adbd that the real adb server connects to, with a sandbox for a file system and faults."""
