"""Values that need the source to run, found before a conversion writes; the only part of it that imports torch."""
