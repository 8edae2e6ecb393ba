"""What is wrong with options, said in one line."""
