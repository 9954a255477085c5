"""Code that serves the chapters of one project each; it imports `helpers`, never the other way."""
