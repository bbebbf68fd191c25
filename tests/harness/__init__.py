"""What the tests of real processes are made of: a stack to break, exact fault points, waiting with a reason."""
