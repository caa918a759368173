"""The files that administrators write: what they say, line by line, before it is a setting."""
