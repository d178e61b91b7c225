"""Values that need the source to run: found before a conversion writes anything. The only part of it that imports torch."""
