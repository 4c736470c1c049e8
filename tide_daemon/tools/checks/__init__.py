"""What `tide-daemon doctor` looks at, a module for each side: the machine, the model's files, the broker."""
