"""When a process of a test counts as hanging; what must happen soon has a limit of its own."""

# Seconds, fewer than pytest's faulthandler_timeout. What takes 2 s of processor time took 70 s beside 35 other
# processes on two cores.
HANGING = 1500
