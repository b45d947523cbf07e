"""From a pattern's arguments to a kernel: one file for each pattern; no pypto here."""
