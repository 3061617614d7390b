"""``python -m tests.inject``: how much of the cases is found."""

from tests.inject.bed import report

for line in report():
    print(line)
