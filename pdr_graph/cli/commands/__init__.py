"""Every command with its options; what each does is imported when it is called."""
