"""What checks the annotations of the library in tests."""

from beartype import BeartypeConf, beartype

#: An int may stand for a float, as Python's type checkers have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
