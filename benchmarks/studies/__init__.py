"""Studies of what the strategies do on a real small model; each is one `make` target."""
