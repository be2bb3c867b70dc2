"""Files, flags and the screen: what every command reads, writes and says."""
