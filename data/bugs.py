"""Which exceptions are mistakes of the program, not of its user, nor faults that pass: trying again would not help."""

BUGS = (TypeError, AttributeError, LookupError, AssertionError, NameError, ArithmeticError, NotImplementedError)
